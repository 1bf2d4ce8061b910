"""Token files on disk: open, split, validate, merge, measure."""
