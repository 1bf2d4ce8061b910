"""What a run tells: log, metrics, progress, provenance."""
