"""The loop's own calls: what the model, its base and the loss function are really given."""
