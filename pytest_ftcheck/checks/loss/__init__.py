"""The loss: whether it is the task's, and what became of it."""
