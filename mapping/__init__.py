"""Entries, tables, state rules and the reference engine: what every other part of segmap agrees on."""
