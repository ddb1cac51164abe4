"""How many sessions one process carries before users notice."""
