"""Looking at what is in a store: features one by one and all together."""
