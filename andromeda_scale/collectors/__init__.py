"""What watches a rank: one file a concern."""
