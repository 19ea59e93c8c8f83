"""Training: the loop, the optimizer, crash checkpoints, weights on disk, inference over a split, the teacher."""
