"""Fits the predictor of norm statistics that ships with the torch engine."""
