"""Token sources and batches: numpy only."""
