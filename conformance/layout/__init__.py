"""The elements of a `.tqc` file, laid down byte by byte from the text of spec/tqc.md.

Nothing here checks a rule: the vectors need what is wrong as well as what is right. It shares no
code with any decoder, imports the standard library only, and gives the same bytes everywhere.
"""
