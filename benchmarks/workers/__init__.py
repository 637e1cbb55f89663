"""Codecs in processes of their own, each in its environment."""
