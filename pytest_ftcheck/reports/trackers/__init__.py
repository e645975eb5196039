"""Experiment trackers: TensorBoard, W&B, MLflow, trackio."""
