"""Training again: one batch alone, and permuted labels."""
