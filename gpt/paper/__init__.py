"""The paper's tables: the published numbers, our runs, and both side by side."""
