"""Measurements beside PyTorch, run from a checkout: `python -m benchmarks --help`."""
