"""Benchmarks: run by hand, never timed in tests.

An environment step is one action, whatever number of physics steps it takes.
"""
