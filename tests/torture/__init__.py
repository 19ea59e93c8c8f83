"""Kills at random moments of every stage, and what the next `dvc repro` makes of it: `make torture`."""
