"""What the modes probe runs and watches."""
