"""Change the input and measure what the output does: the padding, the other rows of the batch, the words, their order."""
