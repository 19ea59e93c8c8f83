"""Ablation studies: arms x seeds of the pipeline's own training, from a YAML file to a table of means and spreads."""
