"""One writer a format: a trace, or the verdicts of a session, as people and viewers read them."""
