"""The training job: engine, step, loop, validation."""
