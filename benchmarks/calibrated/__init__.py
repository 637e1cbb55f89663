"""Calibrated files beside those of others, by what the outputs of networks lose."""
