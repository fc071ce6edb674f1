"""Environments, tasks and task sets. Importing this registers the environments with Brax."""

from tamherd_jax.envs._brax import brax_envs
from tamherd_jax.envs.adapter import MixedEnv, MixedTask, TaskedEnv, make_task_set
from tamherd_jax.envs.episodes import (
    Lanes,
    collect_episode,
    collect_episodes,
    collect_lane,
    collect_policy_episodes,
    collect_recurrent_episode,
)
from tamherd_jax.envs.locomotion import Cheetah, Locomotion, Walker, make_environment
from tamherd_jax.envs.tasks import (
    TASK_SETS,
    Task,
    TaskSet,
    get_task_set,
    mean_by_task,
    ml2,
    ml2_params,
    ml2_vel,
    systematic_resample,
    take_tasks,
)
from tamherd_jax.types import Episodes, TaskEnv

__all__ = [
    "TASK_SETS",
    "Cheetah",
    "Episodes",
    "Lanes",
    "Locomotion",
    "MixedEnv",
    "MixedTask",
    "Task",
    "TaskEnv",
    "TaskSet",
    "TaskedEnv",
    "Walker",
    "collect_episode",
    "collect_episodes",
    "collect_lane",
    "collect_policy_episodes",
    "collect_recurrent_episode",
    "get_task_set",
    "make_environment",
    "make_task_set",
    "mean_by_task",
    "ml2",
    "ml2_params",
    "ml2_vel",
    "systematic_resample",
    "take_tasks",
]

brax_envs.register_environment("tamherd_cheetah", Cheetah)
brax_envs.register_environment("tamherd_walker", Walker)
