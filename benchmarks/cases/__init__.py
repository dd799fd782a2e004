"""What compression must show on real models and data; `python -m benchmarks.compression` runs them."""
