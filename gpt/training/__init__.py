"""From a config to trained weights: optimizer, state, steps, loop, checkpoints."""
