"""Quantization: real-valued graphs to integer ones."""
