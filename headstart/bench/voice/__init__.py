"""The voice alone: first audible sample, real-time factor, quality, memory."""
