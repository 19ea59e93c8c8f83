"""What machine this is, what it shows while it measures, and how it is tuned."""
