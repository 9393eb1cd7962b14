"""Closed forms for parameters, FLOPs, bytes and traffic. Pure functions, no torch."""
