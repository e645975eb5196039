"""The torch side: everything that turns a model, data and a recipe, or somebody's loop, into a `Trace`."""
