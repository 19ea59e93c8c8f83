"""From a float32 ONNX graph to one that computes with int8, in the form that quantize.py describes."""
