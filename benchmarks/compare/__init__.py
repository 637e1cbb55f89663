"""Sizes, speed and memory of codecs on the same weights."""
