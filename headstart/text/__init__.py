"""Text for speech, whatever the voice: clauses and spoken forms."""
