"""Networks trained on labels: the loop, crash checkpoints, weights on disk, passes over a split, the teacher."""
