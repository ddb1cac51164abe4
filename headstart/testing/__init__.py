"""Protocol servers and pytest helpers that users may import too."""
