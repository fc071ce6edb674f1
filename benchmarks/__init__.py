"""Benchmarks, one module a subject; each runs with `python -m benchmarks.<name>`."""
