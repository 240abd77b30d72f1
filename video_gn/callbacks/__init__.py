"""Lightning callbacks of a run: checkpoints, metrics, failures, progress, results."""
