"""What one stage hands the next: plans, records, probed points, first steps. No torch."""
