"""The program on the device that answers a client: bundle, run folder and lock."""
