"""The program on the device that a client talks to: bundle, run folder, lock."""
