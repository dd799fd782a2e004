"""Whet beside its peers: models, data and the scripts that measure them. Nothing here is imported by the package."""
