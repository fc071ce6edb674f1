"""Experiments: configurations and presets, the runner, the step ledger, results on disk."""
