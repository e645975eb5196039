"""Several seeds: runs, sequential tests, thresholds, calibration."""
