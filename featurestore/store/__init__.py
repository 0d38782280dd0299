"""The store: its layout on disk, how it is read, how it changes, what is in it."""
