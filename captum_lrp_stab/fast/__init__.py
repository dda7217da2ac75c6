"""Short ways that give the same numbers as the formulas of the rules."""
