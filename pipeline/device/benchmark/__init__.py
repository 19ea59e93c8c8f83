"""Latency, memory, energy and accuracy of model files on a device, and the statistics of the numbers."""
