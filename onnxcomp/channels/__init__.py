"""Structured pruning: which channels and blocks a model can do without, and how what stays is fitted to it."""
