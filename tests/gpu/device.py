"""Device of the tests in this folder; "cpu" runs their bodies on a machine without a GPU."""

DEVICE = "cuda"
