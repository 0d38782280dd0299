"""Looking at a store: its features, one feature, its tokens."""
