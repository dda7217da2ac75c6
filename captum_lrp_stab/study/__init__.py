"""A study over many pictures: each under every stabilizer, kept on disk, then one report."""
