"""Measurements: what they run, how they time it, and the recorded rows in `results/` (data, not prose)."""
