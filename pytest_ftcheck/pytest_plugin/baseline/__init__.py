"""Baselines: what each fine-tune measured when all was well, in a committed file, and what this one measures beside it."""
