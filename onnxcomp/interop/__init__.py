"""Bridges to other ONNX libraries, guarded against what they would lose."""
