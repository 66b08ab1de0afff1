"""Drills: what the product promises under attack and failure, tried for real and put in figures.

One module a subject. Each offers `DRILLS`, functions that yield a `Row` for each thing tried; the everyday tests call
the same code at a small scale. `python -m drills` (or `make drill`) runs all at full scale and prints one table.
"""
