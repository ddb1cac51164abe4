"""Pipelines in YAML: reading, checking and describing them."""
