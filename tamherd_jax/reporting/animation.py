"""Recorded episodes as what a page's player draws: poses of a body's links, in millimetres and milliradians."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from tamherd_jax.physics.bodies import BODIES, common_layout, load_model, own_coordinates

KINDS = ("before adaptation", "after adaptation")


def capsules(body: str) -> dict[str, list[Any]]:
    """A body's capsules: `link` each belongs to, from 0, and `[x1, z1, x2, z2, radius]` in that link's frame, in metres."""
    model = load_model(body)
    link, shape = [], []
    for geom in range(model.ngeom):
        if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_CAPSULE:
            continue
        axis = np.zeros(9)
        mujoco.mju_quat2Mat(axis, model.geom_quat[geom])
        half = axis.reshape(3, 3)[:, 2] * model.geom_size[geom, 1]
        ends = [model.geom_pos[geom] - half, model.geom_pos[geom] + half]
        link.append(int(model.geom_bodyid[geom]) - 1)
        shape.append([round(float(v), 4) for end in ends for v in (end[0], end[2])] + [float(model.geom_size[geom, 0])])
    return {"link": link, "shape": shape}


def link_poses(body: str, q: np.ndarray) -> np.ndarray:
    """Return x (m), z (m) and angle (rad, from x towards z), `[F, links, 3]`, of a body's links at positions `q` `[F, Q]`."""
    model = load_model(body)
    data = mujoco.MjData(model)
    if q.shape[1] != model.nq:  # positions in the layout that the bodies of a mixed task set share
        q = own_coordinates(body, q, common_layout(BODIES))
    poses = np.zeros((len(q), model.nbody - 1, 3))
    for frame, row in enumerate(q):
        data.qpos[:] = row
        mujoco.mj_kinematics(model, data)
        x_axis = data.xmat[1:].reshape(-1, 3, 3)[:, :, 0]
        poses[frame] = np.stack([data.xpos[1:, 0], data.xpos[1:, 2], np.arctan2(x_axis[:, 2], x_axis[:, 0])], 1)
    return poses


def clip(body: int, q: np.ndarray, rewards: np.ndarray, valid: np.ndarray) -> dict[str, Any]:
    """One episode for the player: frames of integers (mm, mm, mrad a link), cut where the episode ended.

    Args:
      body: index into `BODIES`.
      q: `[T + 1, Q]`.
      rewards, valid: `[T]`.
    """
    steps = int(valid.sum())
    poses = np.rint(1000 * link_poses(BODIES[body], q[: steps + 1].astype(float))).astype(int)
    return {
        "frames": poses.reshape(len(poses), -1).tolist(),
        "rewards": np.round(rewards[:steps].astype(float), 2).tolist(),
        "return": round(float(rewards[:steps].sum()), 1),
        "fell": steps < len(valid),
    }


def player_data(episodes: dict[str, np.ndarray]) -> dict[str, Any]:
    """All that the player needs of what `episodes.npz` holds, ready for JSON: bodies, and per task its two clips."""
    bodies = episodes["body"].tolist()
    seconds = dict(zip(bodies, episodes["dt"].astype(float).round(6).tolist(), strict=True))
    return {
        "seed": int(episodes["seed"]),
        "bodies": {BODIES[body]: capsules(BODIES[body]) | {"dt": seconds[body]} for body in sorted(set(bodies))},
        "tasks": [
            {
                "name": str(name),
                "body": BODIES[body],
                "member": int(episodes["member"][index]),
                "clips": [
                    clip(body, *(episodes[key][index, kind] for key in ("q", "rewards", "valid"))) for kind in range(len(KINDS))
                ],
            }
            for index, (name, body) in enumerate(zip(episodes["tasks"], bodies, strict=True))
        ],
        "kinds": list(KINDS),
    }
