"""Two models of one origin side by side: which tensors stand for each other, and who adds which error."""
