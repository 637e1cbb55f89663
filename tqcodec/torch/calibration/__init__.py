"""Statistics of a network: the layers are seen where they are called, their sums taken, no more."""
