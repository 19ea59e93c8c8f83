"""What is timed and counted on a device, and what the numbers carry."""
