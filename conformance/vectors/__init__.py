"""The vectors, chapter by chapter. Each module has a function `cases()`."""
