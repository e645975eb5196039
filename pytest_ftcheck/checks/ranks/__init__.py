"""The ranks of a distributed run: what must be the same on all of them, and what must not."""
