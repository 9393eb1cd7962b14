"""From a suite file to a plan: read, expanded, pruned, ordered, printed. No torch."""
