"""What SAE features tell of labels: measures of their activations, in numpy alone, at the cost of the active ones."""
