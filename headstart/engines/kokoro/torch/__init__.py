"""Kokoro's network on torch, in pieces."""
