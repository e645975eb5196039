"""The weights: whether they move, stay frozen, and are kept."""
