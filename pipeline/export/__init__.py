"""Export: write the trained networks as files for devices, check each graph and compare it with its network."""
