"""Tables and pages from results. No torch."""
