"""When an answer may begin before the turn has ended."""
