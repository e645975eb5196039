"""Faults that others published, on real weights and real texts; `__main__.py` runs them."""
