"""Measures pipelines against each other on the waveform: utterances, arms, runs, statistics."""
