"""The rewrites: one file a pass, found through the entry-point group ``onnxcomp.passes``."""
