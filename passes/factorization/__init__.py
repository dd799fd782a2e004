"""Factorization: one large weight as the product of small ones."""
