"""Comparison of pretraining objectives: the same text, tasks and budget for each."""
