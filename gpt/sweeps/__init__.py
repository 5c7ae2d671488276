"""Many runs from one command: the grid, who runs which cell, and how far each of them is."""
