"""The inputs: what the output depends on."""
