"""Model families, built on meta and initialised by parameter name."""
