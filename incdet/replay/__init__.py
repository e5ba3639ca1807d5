"""Exemplar memory: what of the old data may be kept, and how it is chosen."""
