"""Nested structures, the autograd graph, marks on tensors, blocks that fit the cache: no LRP."""
