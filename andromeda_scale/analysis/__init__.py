"""Pure functions on tables. No torch."""
