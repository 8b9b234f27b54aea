"""Twins in CUDA C++: one launcher module and one .cu file for each module of functional."""
