"""One checkpoint format for every layout."""
