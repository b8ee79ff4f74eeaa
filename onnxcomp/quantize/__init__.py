"""Int8: where a model is quantized, with which scales, and how that is written."""
