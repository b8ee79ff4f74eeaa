"""What may be rewritten in a graph (sites), how (edit), and its canonical form (fold)."""
