"""Entries, tables, state rules and the reference engine: what every other part of segmap agrees on.

Nothing here does I/O, reads a clock or draws a random number; all of it is given in.
"""
