"""The commands as a terminal gives them: each reads its arguments, calls one stage, prints what was
asked."""
