"""Retraining: the integers of a file are trained, with the bits that they take in the loss."""
