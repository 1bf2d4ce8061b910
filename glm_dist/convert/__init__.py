"""Other formats of GLM checkpoints, read."""
