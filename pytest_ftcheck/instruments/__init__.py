"""Reading a model, its batches and outputs; snapshots; parameter roles; the probe runner."""
