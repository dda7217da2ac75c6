"""Reports as documents, tables and progress bars."""
