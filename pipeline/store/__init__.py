"""Artifacts on disk: paths, documents, tables, locks, free space."""
