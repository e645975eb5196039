"""The command ``ftcheck``."""
