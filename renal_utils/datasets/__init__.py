"""Readers: one module a data set, each turning its own layout into the same records."""
