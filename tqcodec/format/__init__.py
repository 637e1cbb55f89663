"""The specification in code: reads and writes records, never makes a choice.

Imports numpy, constriction and msgpack only, and nothing of `tqcodec.encoder`.
"""
