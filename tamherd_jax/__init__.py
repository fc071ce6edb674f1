"""Meta-reinforcement learning on multi-modal task distributions, entirely on the accelerator."""

__version__ = "0.1.0"
