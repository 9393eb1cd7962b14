"""What a suite may say: its schema, its settings, the choices that they name. No torch."""
