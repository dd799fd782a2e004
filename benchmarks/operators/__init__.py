"""Checking every operator on PyTorch's own samples."""
