"""Analyses: what a graph is like, as data that prints as a table."""
