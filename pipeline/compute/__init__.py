"""Where networks are computed: devices and precision, several processes, seeds."""
