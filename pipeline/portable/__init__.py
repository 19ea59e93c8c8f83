"""Code that this machine and the devices share. It needs the standard library and numpy only."""
