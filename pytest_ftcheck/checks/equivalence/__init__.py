"""What must make no difference: micro-batches in place of one batch, an interruption, a lower precision."""
