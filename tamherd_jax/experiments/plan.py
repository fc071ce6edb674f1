"""What an experiment is going to do, as frozen data: configuration, task set, learners, arms and budgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tamherd_jax.envs import TaskSet, get_task_set, make_environment
from tamherd_jax.experiments.arms import EMBEDDINGS, PROBE, SINGLE, STAGES, Arm, ArmLearners, make_arms
from tamherd_jax.experiments.config import ExperimentConfig
from tamherd_jax.experiments.learners import doubled_gradient_steps, make_learner, make_probe_learner
from tamherd_jax.experiments.ledger import Budget
from tamherd_jax.herd.algorithm import stratified_tasks
from tamherd_jax.herd.clustering import ClusteringConfig
from tamherd_jax.herd.embeddings import Embedding
from tamherd_jax.types import MetaLearner, ReplayLearner, TaskEnv


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """One experiment, planned; nothing in it changes while it runs.

    Axes: S seeds, N tasks, D embedded training tasks, R repeats of a meta-test, B = N R test tasks.

    Attributes:
      config: What to run.
      env: The environment of all tasks.
      task_set: The N tasks.
      seeds: `[S]` seeds of this plan: the configuration's, or a process's share of them. In a sweep, those of every setting.
      settings: What a sweep varies: numbers of the learners' configuration by dotted name, `[S]` each. Empty in a run.
      embedding: Task embedding.
      clustering: How tasks are clustered; the configured way, with at most as many clusters as an epoch samples tasks.
      learner: The meta-learner that probes, adapts and acts, the same for all arms.
      members: By number of members, the meta-learner of a herd of as many, which share an epoch's sampled tasks.
      arms: The arms by name, in order.
      probe_arm: Name of the arm whose learner becomes the probe.
      budget: Environment steps that each part may take.
      embedded_task: `[D]` task of each embedded training task.
      test_task: `[B]` task of each test task: each of the N, R times in a row.
    """

    config: ExperimentConfig
    env: TaskEnv
    task_set: TaskSet
    seeds: np.ndarray
    embedding: Embedding
    clustering: ClusteringConfig
    learner: MetaLearner
    members: Mapping[int, MetaLearner]
    arms: Mapping[str, Arm]
    probe_arm: str
    budget: Budget
    embedded_task: np.ndarray
    test_task: np.ndarray
    settings: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def grouped(self) -> bool:
        """Whether every seed has its own number of members."""
        return self.config.clustering.clusters == "auto"

    def training_arms(self, stage: str) -> list[Arm]:
        """Return the arms that train learners of their own in a stage."""
        return [arm for arm in self.arms.values() if arm.trains and stage in arm.stages]

    def epochs(self, stage: str) -> int:
        """Return the number of epochs of a stage."""
        c = self.config
        shared = c.probe_epochs if PROBE in self.arms["single"].stages else 0
        return {PROBE: c.probe_epochs, EMBEDDINGS: 1, SINGLE: c.single_epochs - shared}.get(stage, c.member_epochs)

    def epoch_work(self, arm: Arm) -> int:
        """Return the environment steps of one epoch and meta-test of an arm, for one seed."""
        c = self.config
        test = (c.explore_episodes + c.test_episodes) * self.learner.horizon * len(self.test_task)
        return test + (arm.budget.epoch if arm.trains else 0)

    def work(self, done: Mapping[str, int] | None = None) -> int:
        """Return the environment steps that are left after `done` epochs of each stage: the sum of `Progress.work` to come."""
        left = {stage: self.epochs(stage) - (done or {}).get(stage, 0) for stage in STAGES}
        work = sum(left[stage] * self.epoch_work(arm) for arm in self.arms.values() for stage in arm.stages)
        return len(self.seeds) * (work + left[EMBEDDINGS] * self.budget.embedding)


def make_plan(
    config: ExperimentConfig,
    env: TaskEnv | None = None,
    task_set: TaskSet | None = None,
    seeds: Sequence[int] | np.ndarray | None = None,
    settings: Mapping[str, np.ndarray] | None = None,
) -> Plan:
    """Plan an experiment.

    Args:
      config: What to run.
      env, task_set: Replace the configuration's, for tests and for users' own tasks.
      seeds: `[S]` some of the configuration's seeds, where several processes share them; the seeds of every setting in a sweep.
      settings: What a sweep varies, `[S]` each; see `Plan`.

    Raises:
      ValueError: The herd would have more members than an epoch samples tasks.
    """
    task_set = get_task_set(config.tasks) if task_set is None else task_set
    if env is None:
        env = make_environment(
            task_set, config.physics, config.expected_action_scale, walker_frame_skip=config.walker_frame_skip
        )
    clustering = affordable_clustering(config, len(task_set))
    modes, auto = len(task_set.mode_names), clustering.clusters == "auto"
    max_members = clustering.max_clusters if auto else int(clustering.clusters)
    counts = range(1, max_members + 1) if auto else (max_members,)
    # Where clusters are as many as modes, herd and oracle share one compiled program.
    by_count = {count: make_learner(config, env, len(task_set), count) for count in sorted({1, modes, *counts})}
    members = {count: by_count[count] for count in counts}
    budget = _budget(config, len(task_set), by_count[1], by_count[modes], modes, members)
    own_probe = config.probe != "meta" and config.probe_epochs > 0
    learners = ArmLearners(
        single=by_count[1],
        expert=by_count[modes],
        member=by_count[max_members],
        probe=make_probe_learner(config, env, len(task_set)) if own_probe else None,
        doubled=make_learner(doubled_gradient_steps(config), env, len(task_set))
        if "double-gradient" in config.controls
        else None,
    )
    return Plan(
        config=config,
        env=env,
        task_set=task_set,
        seeds=np.arange(config.first_seed, config.first_seed + config.seeds) if seeds is None else np.asarray(seeds),
        embedding=Embedding(config.embedding),
        clustering=clustering,
        learner=by_count[1],
        members=members,
        arms=make_arms(config, learners, modes, max_members, budget),
        probe_arm=config.probe if own_probe else "single",
        budget=budget,
        embedded_task=np.asarray(stratified_tasks(task_set.tasks, config.embedding_tasks)[1]),
        test_task=np.repeat(np.arange(len(task_set)), config.test_repeats),
        settings=settings or {},
    )


def affordable_clustering(config: ExperimentConfig, tasks: int) -> ClusteringConfig:
    """Return how tasks are clustered, with no more members than an epoch samples tasks.

    Every member samples at least one task an epoch, so that more members would take more environment steps than the single
    learner, which they are compared with.

    Raises:
      ValueError: The configuration asks for more.
    """
    clustering, sampled = config.clustering, config.draws_per_task * tasks
    if clustering.clusters == "auto":
        return dataclasses.replace(clustering, max_clusters=min(clustering.max_clusters, sampled))
    if int(clustering.clusters) > sampled:
        raise ValueError(
            f"{clustering.clusters} clusters need as many sampled tasks an epoch, one for each member; there are {sampled} "
            f"({config.draws_per_task} draws of each of {tasks} tasks)"
        )
    return clustering


def _budget(
    config: ExperimentConfig,
    tasks: int,
    single: MetaLearner,
    expert: MetaLearner,
    modes: int,
    members: Mapping[int, MetaLearner],
) -> Budget:
    prefill = single.prefill_steps if isinstance(single, ReplayLearner) else 0
    return Budget(
        single_epoch=single.steps_per_epoch,
        herd_epoch=max(count * learner.steps_per_epoch for count, learner in members.items()),
        oracle_epoch=modes * expert.steps_per_epoch,
        probe=prefill * tasks * (config.probe_epochs > 0) + config.probe_epochs * single.steps_per_epoch,
        embedding=config.embedding_tasks * config.embedding_episodes * single.horizon,
        prefill=prefill,
    )
