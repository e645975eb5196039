"""The loss: whether it fits the task, and whether it decreases."""
