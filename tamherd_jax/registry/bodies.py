"""Bodies that the package can simulate: an entry holds everything that distinguishes one from another.

To add a body, add one entry to `BODIES`. Physics backends, environment, task sets, tests of parity and animations look it up.
This module holds data only; `tamherd_jax.physics.bodies` compiles the models.
"""

from __future__ import annotations

import dataclasses
import math

NO_LIMIT = math.inf


@dataclasses.dataclass(frozen=True)
class Body:
    """Entry of one body, a floating planar tree of capsules.

    Attributes:
      name: in task names, files and on the command line.
      model: file name among the models that Brax ships.
      gymnasium: environment of gymnasium with the same definition.
      suites: names of the task sets that contain the body.
      frame_skip: physics steps per environment step.
      timestep: seconds per physics step.
      control_cost: weight of the squared controls in the reward.
      alive_bonus: reward for every step that does not end in a non-finite state.
      reset_position: half-width of the uniform noise on initial positions, and on velocities unless `reset_velocity` is set.
      reset_velocity: standard deviation of normal noise on initial velocities; 0 for uniform noise.
      rest_height: height of the root in the rest pose (m), which the first observation adds to the root's coordinate.
      velocity_clip: bound on observed velocities.
      min_height, max_height: open interval of heights (m) in which an episode continues.
      max_angle: bound on the absolute pitch (rad) from which on an episode ends.
      max_state: bound on every other coordinate and velocity from which on an episode ends.
      other_frame_skips: whether publications disagree about the frame skip, so that an environment may set another.
    """

    name: str
    model: str
    gymnasium: str
    suites: tuple[str, ...]
    frame_skip: int
    timestep: float
    control_cost: float
    reset_position: float
    alive_bonus: float = 0.0
    reset_velocity: float = 0.0
    rest_height: float = 0.0
    velocity_clip: float = NO_LIMIT
    min_height: float = -NO_LIMIT
    max_height: float = NO_LIMIT
    max_angle: float = NO_LIMIT
    max_state: float = NO_LIMIT
    other_frame_skips: bool = False


BODIES: tuple[Body, ...] = (
    Body(  # gymnasium HalfCheetah-v5 with garage's control cost (`HalfCheetahDirEnv`)
        name="cheetah",
        model="half_cheetah.xml",
        gymnasium="HalfCheetah-v5",
        suites=("ML2", "ML3"),
        frame_skip=5,
        timestep=0.01,
        control_cost=0.05,
        reset_position=0.1,
        reset_velocity=0.1,
    ),
    Body(  # gymnasium Walker2d-v4; ProMP's walker has a frame skip of 8
        name="walker",
        model="walker2d.xml",
        gymnasium="Walker2d-v5",
        suites=("ML2", "ML3"),
        frame_skip=4,
        timestep=0.002,
        control_cost=1e-3,
        alive_bonus=1.0,
        reset_position=0.005,
        rest_height=1.25,
        velocity_clip=10.0,
        min_height=0.8,
        max_height=2.0,
        max_angle=1.0,
        other_frame_skips=True,
    ),
    Body(  # gymnasium Hopper-v5, whose links also collide with each other; ours, as Brax's, with the floor alone
        name="hopper",
        model="hopper.xml",
        gymnasium="Hopper-v5",
        suites=("ML3",),
        frame_skip=4,
        timestep=0.002,
        control_cost=1e-3,
        alive_bonus=1.0,
        reset_position=0.005,
        rest_height=1.25,
        velocity_clip=10.0,
        min_height=0.7,
        max_angle=0.2,
        max_state=100.0,
    ),
)
"""Entries; a task names a body by its position here, so new entries go to the end."""


ADJUSTABLE_FRAME_SKIP = next(body.frame_skip for body in BODIES if body.other_frame_skips)
"""Default frame skip of the body whose frame skip publications disagree about."""


def suite(name: str) -> tuple[str, ...]:
    """Return the names of the bodies of a task set, in the registry's order."""
    return tuple(body.name for body in BODIES if name in body.suites)


def get_body(name: str) -> Body:
    """Return an entry by its name.

    Raises:
      ValueError: there is none of that name.
    """
    for body in BODIES:
        if body.name == name:
            return body
    raise ValueError(f"unknown body {name!r}; the bodies are {', '.join(body.name for body in BODIES)}")
