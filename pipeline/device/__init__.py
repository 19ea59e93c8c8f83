"""The benchmark: measurements, their statistics, and the program that runs them on a device.

This package and ``pipeline.runtimes`` run unchanged on this machine and on devices. They need Python 3.10 and numpy.
"""
