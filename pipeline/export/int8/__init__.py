"""Int8 quantisation of a float32 ONNX graph; quantize.py describes the method and the form of the result."""
