"""Examples in the formats of benchmarks."""
