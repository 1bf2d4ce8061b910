"""Weight-decay groups and learning-rate schedules."""
