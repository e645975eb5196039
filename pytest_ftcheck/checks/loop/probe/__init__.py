"""What this room's probes measure, on the torch side."""
