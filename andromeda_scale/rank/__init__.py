"""What a rank does beside its strategy, model and collectors: a step, its phases, a probe."""
