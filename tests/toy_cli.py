"""The command `tamherd` with the point mass in ML2's place, as a process to be killed: `python toy_cli.py run ...`."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tamherd_jax import cli


def put_toy(patch=setattr, patch_item=dict.__setitem__):
    """Make the command line run the toy; `patch` and `patch_item` may be those of pytest's monkeypatch."""
    from point_mass import PointMass, point_tasks
    from toy import share_programs, toy_config

    from tamherd_jax.experiments import presets, runner

    class ToyExperiment(runner.Experiment):
        def __init__(self, config, **options):
            super().__init__(config, PointMass(), point_tasks(), **options)
            share_programs(self, **options)

    patch(runner, "Experiment", ToyExperiment)
    patch_item(presets.PRESETS, "quick", toy_config())


def main():
    """Devices first, as in the real command: importing environments starts JAX's."""
    from tamherd_jax.commands import run

    start_devices = run.start_devices

    def start_then_put_toy(options):
        devices = start_devices(options)
        put_toy()
        return devices

    run.start_devices = start_then_put_toy
    cli.main()


if __name__ == "__main__":
    main()
