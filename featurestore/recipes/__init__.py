"""A whole study in one file."""
