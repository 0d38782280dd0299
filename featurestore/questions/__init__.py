"""What a dataset is, whatever its strategy: which rows, what becomes of X, what becomes of y."""
