"""The head: its start, its units, what it is needed for."""
