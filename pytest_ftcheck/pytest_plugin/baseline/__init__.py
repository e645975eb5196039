"""Baselines: the numbers of known good fine-tunes in a committed file, and the comparison of later runs with them."""
