"""The gradients: whether they arrive, and whether they are those of the loss."""
