"""One small file a task: where its labels and logits are, how they are compared, and the metrics of its field."""
