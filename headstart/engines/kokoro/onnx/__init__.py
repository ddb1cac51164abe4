"""Kokoro's network on onnxruntime, a clause at a time."""
