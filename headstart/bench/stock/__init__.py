"""The baseline: what Pipecat's own documentation builds, on the same weights."""
