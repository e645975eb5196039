"""What is judged, one room a subject; faults and their ranking; the diagnosis."""
