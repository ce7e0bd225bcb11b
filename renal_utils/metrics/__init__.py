"""Metrics: pixels, instances, and the scoring rules of the challenges."""
