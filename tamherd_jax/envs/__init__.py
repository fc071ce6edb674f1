"""Environments, tasks and task sets. Importing this registers the environments with Brax."""

from tamherd_jax.envs._brax import brax_envs
from tamherd_jax.envs.adapter import MixedEnv, MixedTask, TaskedEnv, make_task_set
from tamherd_jax.envs.episodes import (
    AutoresetSteps,
    collect_autoreset_steps,
    collect_episode,
    collect_episodes,
    collect_policy_episodes,
    collect_recurrent_episode,
)
from tamherd_jax.envs.locomotion import Locomotion, body_environment, make_environment
from tamherd_jax.envs.tasks import (
    TASK_SETS,
    Task,
    TaskSet,
    get_task_set,
    mean_by_task,
    ml2,
    ml2_params,
    ml2_vel,
    ml2_vel_between,
    ml3,
    systematic_resample,
    take_tasks,
)
from tamherd_jax.physics.bodies import BODIES
from tamherd_jax.types import Episodes, TaskEnv

__all__ = [
    "TASK_SETS",
    "AutoresetSteps",
    "Episodes",
    "Locomotion",
    "MixedEnv",
    "MixedTask",
    "Task",
    "TaskEnv",
    "TaskSet",
    "TaskedEnv",
    "body_environment",
    "collect_autoreset_steps",
    "collect_episode",
    "collect_episodes",
    "collect_policy_episodes",
    "collect_recurrent_episode",
    "get_task_set",
    "make_environment",
    "make_task_set",
    "mean_by_task",
    "ml2",
    "ml2_params",
    "ml2_vel",
    "ml2_vel_between",
    "ml3",
    "systematic_resample",
    "take_tasks",
]

for _body in BODIES:
    brax_envs.register_environment(f"tamherd_{_body}", body_environment(_body))
