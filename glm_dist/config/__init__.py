"""Typed configuration: schema, Hydra door, and checks that need no torch."""
