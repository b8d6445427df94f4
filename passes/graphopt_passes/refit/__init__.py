"""Recovery without training: layers of a changed model, fitted to what the original's layers give."""
