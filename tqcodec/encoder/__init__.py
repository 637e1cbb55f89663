"""The encoder's choices: what to do with each tensor, and which integers stand for it.

Imports numpy; turns arrays into records of `tqcodec.format` and never
sees a byte offset.
"""
