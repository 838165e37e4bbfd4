"""Scripts that measure, and write `results/*.csv`."""
