"""Throughput of meta-reinforcement learning, measured: `python -m benchmarks --help`.

One module a benchmark, each with `cases(mode)`; `registry` names them. What is measured and how is in `measure` and `counting`,
the words in `definitions`.
"""
