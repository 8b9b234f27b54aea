"""A run: its folder, its training, its checkpoints, and going on after any end."""
