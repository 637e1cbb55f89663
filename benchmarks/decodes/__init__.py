"""A long run that shows that every file decodes."""
