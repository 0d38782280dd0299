"""What the training stage reads: planned, put together from a store, normalized, written, listed."""
