"""Training and evaluation mode: dropout, running statistics, randomness."""
