"""`tamherd embed`: task embeddings of a run's probes or of fresh ones, clustered, measured and plotted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from tamherd_jax.commands import (
    UserError,
    check_count,
    mistakes_of_the_user,
    new_console,
    numbered_directory,
    writing_to,
)
from tamherd_jax.commands.compilation_cache import use_compilation_cache
from tamherd_jax.commands.embedding_options import EmbeddingOptions
from tamherd_jax.commands.options import by_name, listed, one_of, option, some_of
from tamherd_jax.commands.run_options import ALGORITHM, PRESET, PROBE
from tamherd_jax.registry.algorithms import ALGORITHMS, PRESETS, get_algorithm, names_with
from tamherd_jax.registry.choices import EMBEDDINGS, PHYSICS, PROBES

EMBEDDING = listed("Embeddings", EMBEDDINGS, "By default the panels of the paper's Figures 3 and 4.")


@dataclasses.dataclass(frozen=True)
class FreshProbes:
    """Probes that are trained on the spot, where no run directory is given. Where an option is left out, the preset decides."""

    preset: Annotated[str | None, one_of(PRESETS), option("NAME", PRESET)] = None
    algorithm: Annotated[str | None, one_of(ALGORITHMS), option("NAME", ALGORITHM)] = None
    probe: Annotated[str | None, one_of(PROBES), option("NAME", PROBE)] = None
    probe_epochs: Annotated[int | None, option("N")] = None
    """Epochs of the probes; 0 leaves them untrained."""
    seeds: Annotated[int | None, option("N")] = None
    """Number of probes."""
    first_seed: Annotated[int | None, option("N")] = None
    """The seeds are this one and those that follow."""
    physics: Annotated[str | None, one_of(PHYSICS), option("NAME", listed("Physics", PHYSICS))] = None


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embed tasks with the probes of a run, or with fresh ones; cluster them, assign test tasks, plot both."""

    directory: Annotated[Path | None, tyro.conf.Positional, option("[DIR]")] = None
    """A run directory. Without it, probes are trained on the spot."""
    embedding: Annotated[tuple[str, ...], some_of(EMBEDDINGS), option("NAME ...", EMBEDDING)] = ()
    tasks_per_mode: Annotated[int | None, option("N")] = None
    """Training tasks for each task of the set; 50 in the paper's figures. By default as many as the run clusters."""
    test_probes: Annotated[int, tyro.conf.arg(metavar="N")] = 10
    """Test probes of each task that are assigned to clusters."""
    out: Annotated[Path | None, option("DIR")] = None
    """Where results go. By default embed/ in the run directory, or a new directory under runs/."""
    compilation_cache: Annotated[str | None, option("DIR")] = None
    """Directory that keeps compiled programs between runs, or "off"."""
    method: tyro.conf.OmitArgPrefixes[EmbeddingOptions] = EmbeddingOptions()
    probes: tyro.conf.OmitArgPrefixes[FreshProbes] = FreshProbes()


def embed(options: Embed) -> None:
    """Run `tamherd embed`; return the exit status."""
    use_compilation_cache(options.compilation_cache)
    console = new_console()
    with mistakes_of_the_user():
        config = run_config(options) if options.directory else fresh_config(options)
        configs = embedding_configs(options, config)
        config = dataclasses.replace(config, clustering=options.method.clustering(config.clustering))
    if options.directory:
        directory = options.out or options.directory / "embed"
        found = stored(options, config, configs) or computed(options, config, configs, *read_probes(options), console)
    else:
        experiment, probes, directory = train_probes(config, options.out, console)
        found = computed(options, config, configs, experiment, probes, console)
    arrays, rows, task_names = found
    with writing_to(directory):
        directory.mkdir(parents=True, exist_ok=True)
        write(directory, config, task_names, arrays, rows)
    for table in (quality_table(rows), scores_table(rows), places_table(rows, task_names)):
        console.print(table)
    console.print(f"Embeddings and figures: {directory}", highlight=False)


# What is asked for ---------------------------------------------------------------------------------------------------


def run_config(options: Embed) -> Any:
    """The configuration of the run in the directory.

    Raises:
      ValueError: there is none, or an option is for fresh probes.
    """
    from tamherd_jax.experiments.config import ExperimentConfig

    for name, asked in by_name(options.probes).items():
        if asked is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for fresh probes; those of {options.directory} are trained")
    return ExperimentConfig.of_run(Path(str(options.directory)))


def fresh_config(options: Embed) -> Any:
    """The configuration of probes to be trained here.

    Raises:
      ValueError: naming the first option at fault.
    """
    from tamherd_jax.experiments.presets import get_preset, preset_name

    asked = by_name(options.probes)
    config = get_preset(preset_name(asked.pop("preset"), options.probes.algorithm), **asked)
    # Nothing follows the probe, and replay need hold no more than it sees.
    return dataclasses.replace(config, member_epochs=1, single_epochs=max(config.probe_epochs, 1))


def embedding_configs(options: Embed, config: Any) -> dict[str, Any]:
    """Return the embeddings to compute, by name.

    Raises:
      ValueError: a name or number is impossible.
    """
    check_count("tasks_per_mode", options.tasks_per_mode)
    check_count("test_probes", options.test_probes)
    entry = get_algorithm(config.algorithm)
    configs = {name: options.method.embedding_config(name, config.embedding) for name in options.embedding or entry.panels}
    for name, embedding in configs.items():
        if embedding.kind == "latent" and not entry.latent:
            raise ValueError(
                f"embedding {name} is a probe's posterior over a latent; it needs algorithm "
                f"{names_with('latent')}, not {entry.name}"
            )
    return configs


# Results -------------------------------------------------------------------------------------------------------------


def stored(options: Embed, config: Any, configs: dict[str, Any]) -> Any:
    """Return arrays, rows and names of tasks from the run's own embeddings.npz where it holds what is asked for, else None."""
    import numpy as np

    from tamherd_jax.experiments.results import read_run
    from tamherd_jax.herd import clustering
    from tamherd_jax.herd.diagnostics import describe_clusters

    if options.directory is None or options.tasks_per_mode is not None or list(configs.values()) != [config.embedding]:
        return None
    if not (options.directory / "results.json").exists():
        return None
    with mistakes_of_the_user():
        results, _, embeddings = read_run(options.directory)
    modes = np.unique(results.task_set.body_of_task, return_inverse=True)[1]
    (name,), rows, labels = configs, [], []
    for index, gram in enumerate(embeddings["gram"]):
        with mistakes_of_the_user():
            found = clustering.cluster(gram, config.clustering, config.first_seed + index)
        labels.append(found.labels)
        row = {"embedding": name, "seed": config.first_seed + index}
        row |= describe_clusters(found, embeddings["task"], modes)
        rows.append(row | {"reward_guard_rate": float(np.mean(embeddings["guard"][index])), "test": None})
    arrays = {f"{name}/{part}": embeddings[part] for part in ("gram", "guard")} | {f"{name}/labels": np.stack(labels)}
    return arrays | {"task": embeddings["task"]}, rows, results.task_set.tasks


def computed(options: Embed, config: Any, configs: dict[str, Any], experiment: Any, probes: Any, console: Any) -> Any:
    """Return arrays, rows and names of tasks from the states `[S, ...]` of probes."""
    import jax
    import numpy as np

    from tamherd_jax.experiments.embedding import embed_with_probe, training_and_test_tasks
    from tamherd_jax.parallel import map_learners

    plan = experiment.plan
    task_set, count = plan.task_set, len(plan.task_set)
    training = options.tasks_per_mode * count if options.tasks_per_mode else config.embedding_tasks
    (tasks, task), (test_tasks, test_task) = training_and_test_tasks(task_set, training, options.test_probes * count)

    def one(key: Any, probe: Any) -> Any:
        return embed_with_probe(plan.learner, config, configs, tasks, test_tasks, key, probe)

    console.print(f"embedding {training} training tasks and {len(test_task)} test probes a seed", highlight=False)
    keys = jax.vmap(jax.random.key)(np.asarray(plan.seeds, np.uint32))
    embedded = jax.tree.map(np.asarray, map_learners(one, (0, 0))(keys, probes))
    arrays, rows = analyses({name: embedded[name] for name in configs}, config, plan, task, test_task)
    return arrays, rows, task_set.task_names


def analyses(embedded: dict[str, Any], config: Any, plan: Any, task: Any, test_task: Any) -> Any:
    """Every seed's and embedding's Grams with their labels, and a row of diagnostics for each."""
    import jax
    import numpy as np

    from tamherd_jax.experiments.embedding import analyse

    arrays, rows = {"task": task}, []
    for name, parts in embedded.items():
        labels = []
        for index, seed in enumerate(map(int, plan.seeds)):
            mine = jax.tree.map(lambda leaf, index=index: leaf[index], parts)
            try:
                found, row = analyse(mine, config.clustering, plan.task_set, task, test_task, seed)
            except ValueError as error:
                raise UserError(f"seed {seed}, {name}: {error}") from error
            labels.append(found)
            rows.append({"embedding": name, "seed": seed, **row})
        arrays |= {f"{name}/gram": parts.gram, f"{name}/guard": parts.guard, f"{name}/labels": np.stack(labels)}
    return arrays, rows


def read_probes(options: Embed) -> tuple[Any, Any]:
    """The experiment of a run directory and the states `[S, ...]` of its probes, from its newest checkpoint."""
    from tamherd_jax.experiments.checkpoints import Checkpoints
    from tamherd_jax.experiments.runner import Experiment

    where = Path(str(options.directory)) / "checkpoints"
    with mistakes_of_the_user():
        experiment = Experiment(run_config(options))
        if not any(where.glob("[0-9]*")):
            raise UserError(f"{where} holds no checkpoint of this process's, so the run's probes cannot be read")
        checkpoints = Checkpoints(where)
        try:
            checkpoints.restore(experiment.plan, experiment.state)
        finally:
            checkpoints.close()
    if experiment.state.probe is None:
        raise UserError(f"the run in {options.directory} has not trained its probes yet; go on with it first")
    return experiment, experiment.state.probe


def train_probes(config: Any, out: Path | None, console: Any) -> tuple[Any, Any, Path]:
    """An experiment, the states `[S, ...]` of its probes, trained here, and where results go: by default a new directory."""
    from tamherd_jax.experiments.runner import Experiment
    from tamherd_jax.herd.clustering import ClusteringConfig
    from tamherd_jax.reporting.terminal import ProgressDisplay

    with mistakes_of_the_user():
        # Clusters are computed here afterwards: no herd is planned, so that there may be more than a herd could have members.
        experiment = Experiment(dataclasses.replace(config, clustering=ClusteringConfig()))
        events = experiment.train_probes()
    with writing_to(out or Path("runs")):
        directory = numbered_directory(Path("runs"), "embed") if out is None else out
        directory.mkdir(parents=True, exist_ok=True)
    plan, log = experiment.plan, directory / "log.jsonl"
    task_set, work = plan.task_set, config.probe_epochs * plan.budget.single_epoch * config.seeds
    with ProgressDisplay(console, log, task_set.mode_names, task_set.modes, work) as display:
        display.note(f"{config.seeds} probe(s), {config.probe_epochs} epochs, physics {plan.env.backend}")
        for event in events:
            display.show(event)
    return experiment, experiment.state.probe, directory


# Output --------------------------------------------------------------------------------------------------------------


def write(directory: Path, config: Any, task_names: Any, arrays: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """embeddings.npz, embeddings.json and both figures of the first seed."""
    from tamherd_jax.codec import write_arrays, write_json
    from tamherd_jax.reporting.embedding_figures import embedding_figure
    from tamherd_jax.reporting.figures import save_figure

    write_arrays(directory / "embeddings.npz", arrays)
    write_json(directory / "embeddings.json", {"config": config.to_json(), "tasks": list(task_names), "rows": rows})
    grams = {name.removesuffix("/gram"): array[0] for name, array in arrays.items() if name.endswith("/gram")}
    for projection in ("pca", "tsne"):
        path = directory / f"embedding_{projection}.png"
        save_figure(embedding_figure(grams, arrays["task"], task_names, projection), path)


def quality_table(rows: list[dict[str, Any]]) -> Any:
    """Return the table of how well clusters agree with the bodies, which clustering never sees."""
    headings = ("K", "Rand\nbodies", "Rand\ntasks", "purity", "reward\nguard", "assigned\nright", "least\nconfidence")
    table = _table("Clusters of training tasks, and assignment of test probes", headings)
    for row in rows:
        test = row["test"]
        table.add_row(
            row["embedding"],
            str(row["seed"]),
            str(row["clusters"]),
            f"{row['adjusted_rand_index_bodies']:.2f}",
            f"{row['adjusted_rand_index_tasks']:.2f}",
            f"{row['purity_bodies']:.0%}",
            f"{row['reward_guard_rate']:.0%}",
            f"{test['accuracy']:.0%}" if test else "-",
            f"{test['confidence_least']:.2f}" if test else "-",
        )
    return table


def scores_table(rows: list[dict[str, Any]]) -> Any:
    """Return the table of scores of every number of clusters tried."""
    ks = sorted({int(k) for row in rows for values in row["scores"].values() for k in values})
    table = _table("Scores by number of clusters", ("score", *map(str, ks)))
    for row in rows:
        for name, values in row["scores"].items():
            cells = (f"{values[str(k)]:.2f}" if str(k) in values else "" for k in ks)
            table.add_row(row["embedding"], str(row["seed"]), name, *cells)
    return table


def places_table(rows: list[dict[str, Any]], names: Any) -> Any:
    """Training tasks in each cluster by task of the set, and test probes assigned to each."""
    headings = [name.replace("-", "\n") for name in names]
    table = _table("Training tasks in each cluster > test probes assigned to it", headings)
    for row in rows:
        training = ["/".join(map(str, counts)) for counts in row["tasks_in_cluster"]]
        tests = (
            [" > " + "/".join(map(str, counts)) for counts in row["test"]["assigned_to"]]
            if row["test"]
            else [""] * len(training)
        )
        table.add_row(row["embedding"], str(row["seed"]), *(a + b for a, b in zip(training, tests, strict=True)))
    return table


def _table(title: str, columns: Any) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table("embedding", "seed", title=title, box=SIMPLE, padding=(0, 1, 0, 0))  # narrow: it must fit 80 columns
    for name in columns:
        table.add_column(name, justify="right")
    return table
