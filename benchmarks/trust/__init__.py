"""A long run that throws damaged and odd inputs at every verb."""
