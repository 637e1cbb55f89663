"""What every layer may use: checks of arguments, others' messages, streams, files, progress.

Imports nothing of the package but `errors`, and no library but numpy.
"""
