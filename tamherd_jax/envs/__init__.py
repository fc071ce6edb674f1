"""Environments, tasks and task sets. Importing this registers the environments with Brax."""

from tamherd_jax.envs._brax import brax_envs
from tamherd_jax.envs.episodes import Episodes, Lanes, TaskEnv, collect_episode, collect_episodes, collect_lane
from tamherd_jax.envs.locomotion import Cheetah, Locomotion, Walker
from tamherd_jax.envs.tasks import TASK_SETS, Task, TaskSet, mean_by_task, ml2, systematic_resample, take_tasks

__all__ = [
    "TASK_SETS",
    "Cheetah",
    "Episodes",
    "Lanes",
    "Locomotion",
    "Task",
    "TaskEnv",
    "TaskSet",
    "Walker",
    "collect_episode",
    "collect_episodes",
    "collect_lane",
    "mean_by_task",
    "ml2",
    "systematic_resample",
    "take_tasks",
]

brax_envs.register_environment("tamherd_cheetah", Cheetah)
brax_envs.register_environment("tamherd_walker", Walker)
