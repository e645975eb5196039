"""The optimizer: its parameters, settings and schedule."""
