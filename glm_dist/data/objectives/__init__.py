"""Pretraining objectives: how a window of tokens becomes Part A and Part B."""
