"""From an operation that a pass meets to what LRP does with it."""
