"""Speech-to-text that answers while the user is still speaking."""
