"""Process layout, groups, random numbers and pipeline schedule."""
