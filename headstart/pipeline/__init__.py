"""From YAML to a running conversation."""
