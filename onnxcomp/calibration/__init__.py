"""Streaming statistics of activations: ranges, histograms and patch Grams, in memory that does not grow with the data."""
