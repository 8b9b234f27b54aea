"""Measurements: each prints a table and writes it, with the machine it was made on."""
