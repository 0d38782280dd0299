"""Looking at a store: features, one feature, plots, a report."""
