"""The library behind the stages: no argument parsing, no DVC, no printing."""
