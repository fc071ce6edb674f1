"""`report.html` and the page of `tamherd view`: single files that open offline."""

from __future__ import annotations

import base64
import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import jinja2

from tamherd_jax.codec import encode, write_atomically
from tamherd_jax.experiments.results import Results
from tamherd_jax.experiments.settings import run_command
from tamherd_jax.reporting import figures, paper, statistics, views
from tamherd_jax.reporting.animation import player_data
from tamherd_jax.reporting.run_files import RunFiles, algorithm_of, arm_title
from tamherd_jax.reporting.tables import interval, left_out_text, number, paper_table_number, seeds_text

TEMPLATES = Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class Figure:
    """An inline SVG and what it shows."""

    svg: str
    title: str


def report_page(run: RunFiles, analysis: statistics.Analysis) -> str:
    """The text of `report.html`: nothing outside the file is ever loaded."""
    results = run.results
    summaries, comparisons = analysis.summaries, analysis.comparisons
    return render(
        "report.html.j2",
        title=f"Taming the Herd on {results.task_set.name}: {results.config.preset}",
        subtitle=subtitle(results),
        verdict=views.verdict(run, summaries, comparisons),
        cards=cards(results, summaries, comparisons),
        table_number=paper_table_number(results),
        paper_seeds=paper.PAPER_SEEDS,
        resamples=f"{statistics.RESAMPLES:,}",
        left_out=left_out_text(results),
        paper_table=views.paper_table(results, summaries),
        statistics_table=views.statistics_table(results, summaries),
        comparison_table=views.comparison_table(comparisons) if comparisons else None,
        excluded_table=views.excluded_table(results),
        adaptation_table=views.adaptation_table(run),
        shots_table=views.shots_table(results),
        confusion_table=views.confusion_table(results),
        clusters_table=views.clusters_table(results),
        ledger_table=views.ledger_table(results),
        throughput_table=views.throughput_table(run.log),
        ambiguity_table=views.ambiguity_table(),
        configuration_table=views.configuration_table(results),
        versions=versions(results),
        run_command=made_by(results),
        command=f"tamherd report {shlex.quote(str(run.directory))}",
        report_script=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
        embedding_text=", ".join(f"{name} {value}" for name, value in encode(results.config.embedding).items()),
        **drawings(run),
        **player(run),
    )


def render(template: str, **values: Any) -> str:
    """A page from a template, the style sheet included; a name that the template lacks is an error."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template(template).render(css=(TEMPLATES / "page.css").read_text(encoding="utf-8"), **values)


def drawings(run: RunFiles) -> dict[str, Any]:
    """All figures of the report."""
    results, curves = run.results, run.curves
    main, controls = figures.paper_arms(results), figures.control_arms(results)
    adaptation = {arm_title(results, arm): figures.adaptation_panel(results, curves, arm) for arm in main}
    control_panels = figures.curve_panels(results, curves, controls) if controls else {}
    return {
        "curve_figures": _svgs("curves", figures.curve_panels(results, curves, main), "learning curves"),
        "control_figures": _svgs("controls", control_panels, "learning curves of controls"),
        "adaptation_figures": _svgs("adaptation", adaptation, "before and after adaptation"),
        "pca_figures": _svgs("pca", figures.embedding_panels(results, run.embeddings), "embedded tasks, PCA"),
        "tsne_figures": _svgs(
            "tsne", figures.embedding_panels(results, run.embeddings, projection="tsne"), "embedded tasks, t-SNE"
        ),
        "embedding_images": embed_images(run.directory),
    }


def _svgs(prefix: str, panels: dict[str, figures.Draw], what: str) -> list[Figure]:
    return [
        Figure(figures.svg(draw, f"{prefix}{i}", f"{what}: {title}"), title) for i, (title, draw) in enumerate(panels.items())
    ]


def embed_images(directory: Path) -> list[dict[str, str]]:
    """The figures that `tamherd embed DIR` left in the run's directory, of more tasks and other embeddings."""
    titles = {"embedding_pca.png": "PCA, from tamherd embed", "embedding_tsne.png": "t-SNE, from tamherd embed"}
    found = [(directory / "embed" / name, title) for name, title in titles.items()]
    return [{"title": title, "source": image_source(path)} for path, title in found if path.exists()]


def image_source(path: Path) -> str:
    """A PNG file as a `data:` address."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def player(run: RunFiles) -> dict[str, Any]:
    """What the animation needs; empty where the run recorded no episodes."""
    if run.episodes is None:
        return {"player": "", "player_seed": "", "player_script": ""}
    data = player_data(run.episodes)
    return {"player": script_json(data), "player_seed": data["seed"], "player_script": player_script()}


def player_script() -> str:
    """Return the JavaScript of the animation player."""
    return (TEMPLATES / "player.js").read_text(encoding="utf-8")


def script_json(data: Any) -> str:
    """JSON that may stand in a `<script>` element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def subtitle(results: Results) -> str:
    """Seeds, epochs, physics and device in a line."""
    epochs = results.config.member_epochs
    parts = [algorithm_of(results).title, seeds_text(results.config.seeds), f"{epochs} epoch{'s' * (epochs != 1)}"]
    return " · ".join([*parts, f"physics {results.physics}", f"device {results.device}"])


def made_by(results: Results) -> str | None:
    """Return the command that trains such a run; None where its configuration comes from no preset."""
    try:
        return run_command(results.config)
    except ValueError:
        return None


def versions(results: Results) -> str:
    """The package's version and those of what it stands on."""
    package = results.package
    return ", ".join([f"{package.name} {package.version}", *(f"{n} {v}" for n, v in results.versions.items())])


def cards(
    results: Results, summaries: list[statistics.ArmSummary], comparisons: list[statistics.Comparison]
) -> list[dict[str, str]]:
    """Return the headline numbers at the top of the page."""
    cards = [
        {"title": arm_title(results, s.arm), "value": number(s.last5_iqm.value), "small": interval(s.last5_iqm) or "one seed"}
        for s in summaries
        if s.body is None
    ]
    if comparisons:
        probability = comparisons[-1].probability
        text = interval(probability, 2) or "one seed"
        cards.append({"title": "P(herd > single)", "value": f"{probability.value:.2f}", "small": text})
    accuracy = [row.assignment_accuracy for row in results.clusters if not row.failure]
    if accuracy:
        share = sum(accuracy) / len(accuracy)
        cards.append({"title": "Assigned right", "value": f"{share:.0%}", "small": "test tasks, all epochs"})
    return cards


def view_page(data: dict[str, Any], title: str, subtitle: str) -> str:
    """The page of `tamherd view`: the player alone.

    Args:
      data: of `player_data`.
      title, subtitle: its headings.
    """
    return render("view.html.j2", title=title, subtitle=subtitle, player=script_json(data), player_script=player_script())


def write_page(text: str, path: Path) -> Path:
    """Write a page at once, so that a browser never shows half of one."""
    write_atomically(path, lambda file: file.write(text.encode()))
    return path
