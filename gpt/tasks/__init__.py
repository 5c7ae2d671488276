"""The labelled tasks: reader + input transform + head + metric, one entry each in `registry.TASKS`."""
