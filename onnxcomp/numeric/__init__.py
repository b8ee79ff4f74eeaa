"""Arrays in, arrays out: the mathematics of compression, without a word of ONNX."""
