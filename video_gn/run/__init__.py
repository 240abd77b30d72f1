"""A run: its directory, checkpoints, metrics, signals, and how its processes are launched."""
