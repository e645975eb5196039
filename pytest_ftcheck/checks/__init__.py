"""Checks: what is judged, a room a subject; what is declared of each check; the diagnosis."""
