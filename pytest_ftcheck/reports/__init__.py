"""One writer a format: each turns a `Trace` into something a person, or a viewer, reads."""
