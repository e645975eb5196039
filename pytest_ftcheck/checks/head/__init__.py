"""The head: its initialisation, its units, and whether it is needed."""
