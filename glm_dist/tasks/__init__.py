"""Benchmarks from files of examples: choices, answers, perplexity."""
