"""Beginning the answer before the user has finished."""
