"""Which window of which corpus is row k: mixing, epochs, permutations."""
