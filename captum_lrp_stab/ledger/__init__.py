"""What one watched attribution shows: records of its layers, and where instability starts."""
