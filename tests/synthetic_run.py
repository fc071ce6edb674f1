"""Result files of an imagined experiment, of any size, without any training."""

import json

import numpy as np

TASKS = ("cheetah-forward", "cheetah-backward", "walker-forward", "walker-backward")
BODIES = ("cheetah", "cheetah", "walker", "walker")
BUDGET = {"oracle": 40, "single": 40, "herd": 40}
PROBE, MEMBER = 4, 12


def write_synthetic_run(
    directory, seeds=3, first_seed=0, controls=(), excluded=(), member_epochs=MEMBER, algorithm="maml", rng=0
):
    """results.json, curves.npz, embeddings.npz and log.jsonl of `seeds` seeds; herd rows of `excluded` seeds are left out."""
    rng = np.random.default_rng(rng)
    arms = ("oracle", "single", "herd", *controls)
    epochs = dict.fromkeys(arms, member_epochs) | {"single": member_epochs + PROBE + 1}
    curves = {}
    for index, arm in enumerate(arms):
        e = epochs[arm]
        rise = np.linspace(0, 100 + 10 * index, e)[None, :, None] * np.array([1.0, 0.8, 2.0, 1.5])
        after = rise + rng.normal(size=(seeds, 1, 4)) * 5 + rng.normal(size=(seeds, e, 4))
        curves[f"{arm}/after"] = after.astype(np.float32)
        curves[f"{arm}/before"] = (after - 7 - rng.normal(size=after.shape)).astype(np.float32)
        start = PROBE * 40_000 + 10_000 if arm not in ("oracle", "single") else 0
        curves[f"{arm}/budget"] = start + 40_000 * np.arange(1, e + 1)
        curves[f"{arm}/taken"] = np.tile(curves[f"{arm}/budget"] * 0.8, (seeds, 1))
    entries = [{"seed": s, "arm": "herd", "learner": 0, "epoch": 3, "why": "params is not finite"} for s in excluded]
    config = {"preset": "imagined", "algorithm": algorithm, "seeds": seeds, "first_seed": first_seed, "probe_epochs": PROBE}
    results = {
        "schema": 1,
        "package": {"name": "tamherd-jax", "version": "0"},
        "versions": {"numpy": np.__version__},
        "device": "none",
        "physics": "none",
        "task_set": {
            "name": "ML2",
            "version": 1,
            "tasks": list(TASKS),
            "bodies": ["cheetah", "walker"],
            "body_of_task": list(BODIES),
        },
        "config": config | {"member_epochs": member_epochs, "maml": {"horizon": 100, "trpo": {"max_kl": 0.01}}},
        "rows": _rows(curves, arms, first_seed, excluded),
        "excluded": entries,
        "clusters": [_clusters(first_seed + s, member_epochs) for s in range(seeds)],
        "ledger": {
            "unit": "environment step = one action",
            "budget": {"probe": 160_000, "embedding": 10_000} | {arm: int(curves[f"{arm}/budget"][-1]) for arm in arms},
            "taken": {"probe": [1] * seeds, "embedding": [1] * seeds} | {arm: [5] * seeds for arm in arms},
            "meta_updates": {"single": 1, "herd": 2, "oracle": 2},
        },
        "nonfinite_episodes": dict.fromkeys(arms, 0),
    }
    points = np.repeat(np.eye(4), 10, axis=0) + 0.05 * rng.normal(size=(seeds, 40, 4))
    labels = np.tile(np.repeat([0, 0, 1, 1], 10), (seeds, 1))
    embeddings = {"gram": points @ points.swapaxes(1, 2), "labels": labels, "task": np.repeat(np.arange(4), 10)}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results))
    np.savez_compressed(directory / "curves.npz", **curves)
    np.savez_compressed(directory / "embeddings.npz", **embeddings)
    _log(directory / "log.jsonl")
    return results, curves


def _rows(curves, arms, first_seed, excluded):
    rows = []
    for arm in arms:
        for body in ("cheetah", "walker"):
            tasks = [i for i, b in enumerate(BODIES) if b == body]
            after, before = (curves[f"{arm}/{kind}"][:, :, tasks].astype(float).mean(2) for kind in ("after", "before"))
            for s in range(len(after)):
                if arm == "herd" and s + first_seed in excluded:
                    continue
                last = {
                    "best": after[s].max(),
                    "final": after[s, -1],
                    "last5": after[s, -5:].mean(),
                    "before": before[s, -5:].mean(),
                }
                rows += [
                    {"seed": first_seed + s, "arm": arm, "body": body, "statistic": k, "value": v} for k, v in last.items()
                ]
    return rows


def _clusters(seed, epochs):
    return {
        "seed": seed,
        "clusters": 2,
        "failure": None,
        "tasks_in_cluster": {
            "cheetah-forward": [10, 0],
            "cheetah-backward": [10, 0],
            "walker-forward": [1, 9],
            "walker-backward": [0, 10],
        },
        "adjusted_rand_index_bodies": 0.9,
        "purity_bodies": 0.95,
        "adjusted_rand_index_tasks": 0.5,
        "silhouette": {"2": 0.7},
        "scores": {"silhouette": {"2": 0.7}},
        "reward_guard_rate": 0.0,
        "assignment_accuracy": 0.75,
        "assignment_confidence": 0.8,
        "assignment_margin": 1.5,
        "assigned_to": dict(zip(TASKS, [[epochs, 0], [epochs, 0], [epochs, 0], [0, epochs]], strict=True)),
    }


def _log(path):
    stages = [("probe", 4), ("embeddings", 1), ("herd and oracle", 3), ("single", 2)]
    records = [
        {"time": 1.0, "stage": stage, "epoch": e, "seconds": 10.0 if e == 1 else 2.0, "steps": 1000, "steps_per_second": 500.0}
        for stage, count in stages
        for e in range(1, count + 1)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"stage": "sing')


def synthetic_episodes(path):
    """An episodes.npz of two tasks: a cheetah that runs on, a walker that falls after 20 steps once adapted."""
    steps = 50
    q = np.zeros((2, 2, steps + 1, 9), np.float32)
    q[..., 0] = np.linspace(0, 3, steps + 1)
    q[1, :, :, 1], q[1, :, :, 2] = 0.02, 0.1
    valid = np.ones((2, 2, steps), np.float32)
    valid[1, 1, 20:] = 0
    np.savez_compressed(
        path,
        q=q,
        rewards=0.5 * valid,
        valid=valid,
        member=np.array([0, 1]),
        body=np.array([0, 1]),
        dt=np.array([0.05, 0.016], np.float32),
        tasks=np.array(["cheetah-forward", "walker-backward"]),
        seed=np.asarray(3),
    )
