"""The data: batches, labels, leaks, metrics."""
