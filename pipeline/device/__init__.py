"""The benchmark: what is measured, how, and what the numbers can carry.

This package and ``pipeline.runtimes`` travel to target devices as they are, so that the code that
measures here is the code that measures there: standard library and numpy only, Python 3.10 or newer.
"""
