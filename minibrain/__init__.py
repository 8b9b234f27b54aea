"""Segmenting brain tumours in 3D MRI with hand-written arithmetic."""
