"""Models that Whet is tried on: trained ones with real inputs, and architectures with random weights.

`trained` and `zoo_cases` are imported on demand, because they need the libraries that define the models.
"""

from benchmarks.models.case import ModelCase

__all__ = ["ModelCase"]
