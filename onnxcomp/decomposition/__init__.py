"""Decompositions: forms that replace a layer by a chain of cheaper ones."""
