"""From filters, name maps and presets to the rules of the layers of a model."""
