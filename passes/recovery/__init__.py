"""Recovery: training a graph, so that it regains what compression has cost it."""
