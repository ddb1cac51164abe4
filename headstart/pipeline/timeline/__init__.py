"""What happened in a conversation, turn by turn, as records."""
