"""The point-mass experiment as a program of its own, to be killed: `python toy_run.py DIR [--resume] [--every S] ...`."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--cache")
    return parser.parse_args()


def main():
    options = parse()
    import jax

    jax.config.update("jax_num_cpu_devices", options.devices)
    if options.cache:
        jax.config.update("jax_compilation_cache_dir", options.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from toy import toy_config, toy_experiment

    from tamherd_jax.experiments.checkpoints import Checkpoints
    from tamherd_jax.experiments.writing import write_results

    experiment = toy_experiment(toy_config(seeds=options.seeds), devices=jax.local_devices())
    checkpoints = Checkpoints(options.out / "checkpoints", options.every, warn=lambda line: print(line, flush=True))
    print("from", checkpoints.restore(experiment.plan, experiment.state), flush=True)
    for event in experiment.run():
        checkpoints.offer(experiment.plan, experiment.state)
        print(json.dumps([event.stage, event.epoch, time.time()]), flush=True)
    checkpoints.save(experiment.plan, experiment.state)
    checkpoints.close()
    write_results(experiment.plan, experiment.state, options.out)


if __name__ == "__main__":
    sys.exit(main())
