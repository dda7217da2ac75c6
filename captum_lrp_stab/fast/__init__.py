"""Faster computations of what the formulas of the rules give."""
