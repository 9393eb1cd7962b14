"""What a machine is, with which software, and what it is known to reach. No torch."""
