"""Where the tests of this folder compute; "cpu" tries their bodies on a machine without a GPU."""

DEVICE = "cuda"
