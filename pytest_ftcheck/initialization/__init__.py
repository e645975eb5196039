"""Initialisation schemes: applying and recognising them, and training many heads under them at once."""
