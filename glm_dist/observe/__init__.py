"""Output of a run: log, metrics, progress, provenance."""
