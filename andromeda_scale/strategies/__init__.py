"""How the model is spread over ranks: one file a strategy."""
