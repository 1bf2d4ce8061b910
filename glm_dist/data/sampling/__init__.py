"""From row k to a window of a corpus: mixing, epochs, permutations."""
