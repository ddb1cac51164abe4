"""Where audio comes from and goes."""
