"""Facts about torch functions: what kind of operation each is, and what it is made of."""
