"""A drill for operators: whether what is backed up can be restored, and goes on elsewhere."""
