"""ONNX Runtime: sessions, interleaved timing, activations and the proof of which kernels a model runs on."""
