"""Whet beside its peers: models, data and the scripts that measure them, unknown to the package."""
