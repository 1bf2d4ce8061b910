"""Other formats of GLM checkpoints, in and out."""
