"""Exported files measured: accuracy on this machine, accuracy and latency on the device that runs them."""
