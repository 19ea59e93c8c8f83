"""Data sets: sources, splits, the packed store, decoding of images, and batches of augmented views."""
