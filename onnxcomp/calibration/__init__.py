"""Streaming statistics of activations (ranges, histograms, patch Grams) in memory that does not grow with the data."""
