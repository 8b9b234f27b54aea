"""How good predictions are, and how runs compare."""
