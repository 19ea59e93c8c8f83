"""Description, sensors, power meters, memory and CPU governor of the machine that measures."""
