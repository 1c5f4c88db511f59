"""Measure the models on this machine against other networks: ``python -m benchmarks``."""
