"""What sees torch on behalf of all probes: reading batches and outputs, snapshots, parameter roles, the probe runner."""
