"""Systems under test: checkpoints of our families, and what was made or runs elsewhere."""
