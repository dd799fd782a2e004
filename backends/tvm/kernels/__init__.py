"""Tensor expressions of the CPU kernels, and the packing of the constants that they read."""
