"""Fine-tunes and watched loops: from a model, data and a recipe to a Trace."""
