"""Streaming recognisers: connection, replay after a drop, and fallback."""
