"""The stages, in the order in which data meets them."""
