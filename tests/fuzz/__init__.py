"""Damaged, foreign and hostile files for every reader of ours: each works, or ends in one of our own sentences."""
