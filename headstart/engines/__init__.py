"""Models, loaded once a process and shared by all sessions; they know no frames."""
