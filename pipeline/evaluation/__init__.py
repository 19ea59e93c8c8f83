"""Evaluation of exported files: accuracy on this machine; accuracy and latency on the target device."""
