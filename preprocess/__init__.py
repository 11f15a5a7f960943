"""Reading studies and reports, and writing record stores; imports no torch."""
