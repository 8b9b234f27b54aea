"""From NIfTI files to batches."""
