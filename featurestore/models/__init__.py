"""A language model and its SAEs: run over sentences, straight into a store."""
