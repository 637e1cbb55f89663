"""Inputs for calibration that are made from the network alone, where there is no data."""
