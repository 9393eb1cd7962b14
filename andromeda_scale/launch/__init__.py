"""Processes: the driver, one agent a node, the ranks it forks."""
