"""When a user's turn begins and ends."""
