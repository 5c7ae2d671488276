"""What came of a run: scores from its own config, and its curves."""
