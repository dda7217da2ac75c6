"""Reading, arranging and drawing pictures and heatmaps."""
