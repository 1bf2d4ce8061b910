"""Memory of a run, computed from its configuration without torch."""
