"""Pruning: weights masked, or channels, heads and blocks removed."""
