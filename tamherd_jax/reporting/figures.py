"""The paper's figures from result files: as matplotlib figures, and as SVG that takes its colours from the page it stands in.

Figures are made without pyplot, so that nothing here changes the backend of a program or notebook that asks for one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from tamherd_jax.experiments.results import ARMS, Results
from tamherd_jax.reporting.embedding_figures import principal_plane, tsne_plane
from tamherd_jax.reporting.run_files import arm_curve, arm_title, included, own_probe

INK, GRID = "#010101", "#b9b9b9"
COLOURS = ("#1f77b4", "#e6750a", "#2a9134", "#b83280", "#7b61c9", "#8c6239", "#0f8b8d", "#a1260d")
CSS_VARIABLES = {INK: "var(--ink)", GRID: "var(--line)"} | {c: f"var(--c{i})" for i, c in enumerate(COLOURS)}
"""What each colour becomes in an SVG, so that one figure is readable on light and on dark."""

_MARKERS = "o^sDvP*X"
_STYLE: Any = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "tamherd_jax",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.alpha": 0.4,
    "axes.grid": True,
    "axes.axisbelow": True,
} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)

Draw = Callable[[Axes], None]
"""Draws on a matplotlib `Axes`."""


def arm_style(results: Results, arm: str) -> dict[str, Any]:
    """Colour and line of an arm: the paper's for its three, dashed colours of their own for others."""
    if arm == "oracle":
        return {"color": INK, "linestyle": ":"}
    if arm in ARMS:
        return {"color": COLOURS[("single", "herd").index(arm)], "linestyle": "-"}
    others = [name for name in results.arms if name not in ARMS]
    return {"color": COLOURS[2 + others.index(arm) % (len(COLOURS) - 2)], "linestyle": "--"}


def paper_arms(results: Results) -> list[str]:
    """The arms of Figure 2, and a probe of its own, with whose curve the herd's begins."""
    shown = (*ARMS, own_probe(results))
    return [arm for arm in results.arms if arm in shown]


def control_arms(results: Results) -> list[str]:
    """The herd and its controls; empty without any."""
    main = paper_arms(results)
    controls = [arm for arm in results.arms if arm not in main]
    return ["herd", *controls] if controls else []


def curve_panels(results: Results, curves: dict[str, np.ndarray], shown: list[str]) -> dict[str, Draw]:
    """Figure 2 of some arms, a panel for all tasks and one per body: title to what draws it.

    Meta-test return after adaptation against all environment steps, mean and one standard deviation over the seeds that count.
    The herd's curve is the single learner's while the probe trains; the oracle is not charged for a probe.
    """

    def draw(body: str | None) -> Draw:
        def on(axis: Axes) -> None:
            for arm in shown:
                steps, returns = arm_curve(results, curves, arm, body)
                if not len(returns):
                    continue
                style = arm_style(results, arm)
                mean, deviation = returns.mean(0), returns.std(0)
                axis.plot(steps / 1e6, mean, label=arm_title(results, arm), **style)
                band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
                axis.fill_between(steps / 1e6, mean - deviation, mean + deviation, **band)
            axis.set(xlabel="million environment steps (budget)", ylabel="return after adaptation")
            axis.legend(frameon=False)

        return on

    return {"all tasks": draw(None)} | {body: draw(body) for body in results.task_set.bodies}


def learning_curves(results: Results, curves: dict[str, np.ndarray]) -> Figure:
    """Return Figure 2: `curve_panels` of the paper's arms side by side."""
    return row_of_panels(curve_panels(results, curves, paper_arms(results)), height=3.8)


def control_curves(results: Results, curves: dict[str, np.ndarray]) -> Figure | None:
    """Return the curves of the herd against its controls; None without controls."""
    shown = control_arms(results)
    return row_of_panels(curve_panels(results, curves, shown), height=3.8) if shown else None


def adaptation_panel(results: Results, curves: dict[str, np.ndarray], arm: str) -> Draw:
    """Return of every task before and after adaptation (mean of the last five epochs): dot and bar a task, mean and standard
    deviation over the seeds that count.
    """

    def on(axis: Axes) -> None:
        before, after = adaptation(results, curves, arm).values()
        if not len(after):
            return
        rows = np.arange(before.shape[1])[::-1]
        colour = arm_style(results, arm)["color"]
        drawn: tuple[tuple[float, np.ndarray, dict[str, Any], str], ...] = (
            (0.12, before, {"mfc": "none"}, "before"),
            (-0.12, after, {}, "after adaptation"),
        )
        for offset, values, style, label in drawn:
            deviations = values.std(0) if len(values) > 1 else None
            axis.errorbar(values.mean(0), rows + offset, xerr=deviations, fmt="o", color=colour, label=label, **style)
        axis.set(yticks=rows, yticklabels=results.task_set.tasks, xlabel="return")
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.legend(frameon=False)

    return on


def adaptation(results: Results, curves: dict[str, np.ndarray], arm: str) -> dict[str, np.ndarray]:
    """`before` and `after` `[S', N]`: mean return of the last five epochs by seed that counts and task."""
    rows = included(results, arm)
    return {kind: curves[f"{arm}/{kind}"][rows, -5:].mean(1) for kind in ("before", "after")}


def embedding_panels(
    results: Results, embeddings: dict[str, np.ndarray], seeds: int = 4, projection: str = "pca"
) -> dict[str, Draw]:
    """Figure 3 (`pca`) or 4 (`tsne`) of the embedded training tasks, a panel a seed: colour the task, marker the cluster."""
    clustered = [index for index, row in enumerate(results.clusters) if not row.failure][:seeds]
    return {embedding_title(results, index): _embedding_panel(results, embeddings, index, projection) for index in clustered}


def embedding_title(results: Results, index: int) -> str:
    """Heading of one seed's map."""
    summary = results.clusters[index]
    return f"seed {summary.seed}: Rand index {summary.adjusted_rand_index_bodies:.2f}"


def _embedding_panel(results: Results, embeddings: dict[str, np.ndarray], index: int, projection: str) -> Draw:
    def on(axis: Axes) -> None:
        project, name = {"pca": (principal_plane, "principal coordinate"), "tsne": (tsne_plane, "t-SNE")}[projection]
        with threadpool_limits(1):  # t-SNE of tens of points: its threads would wait for each other ten times longer
            points = project(np.asarray(embeddings["gram"][index], float))
        labels = embeddings["labels"][index]
        for task, title in enumerate(results.task_set.tasks):
            for k in np.unique(labels[embeddings["task"] == task]):
                inside = (embeddings["task"] == task) & (labels == k)
                look: dict[str, Any] = {
                    "color": COLOURS[task % len(COLOURS)],
                    "marker": _MARKERS[k % len(_MARKERS)],
                    "alpha": 0.8,
                }
                axis.scatter(*points[inside].T, label=f"{title}, cluster {k}", **look)
        axis.set(xlabel=f"{name} 1", ylabel=f"{name} 2")
        axis.legend(frameon=False, fontsize="small")

    return on


def embedding_map(results: Results, embeddings: dict[str, np.ndarray], seeds: int = 4) -> Figure | None:
    """Return the map of embedded tasks, `embedding_panels` side by side; None where no seed could be clustered."""
    panels = embedding_panels(results, embeddings, seeds)
    return row_of_panels(panels, height=4.2) if panels else None


def row_of_panels(panels: dict[str, Draw], height: float) -> Figure:
    """Return panels side by side, `height` in inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * len(panels), height), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)
        for axis, (title, draw) in zip(axes[0], panels.items(), strict=True):
            draw(axis)
            axis.set_title(title)
    return figure


def save_figure(figure: Figure | None, path: Path) -> None:
    """Write a figure to a file whose suffix chooses the format, its directory made if need be; nothing for None.

    Raises:
      OSError: It cannot be written.
    """
    if figure is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(_STYLE):
            figure.savefig(path, dpi=150)


def svg(draw: Draw, name: str, title: str, size: tuple[float, float] = (4.6, 3.4)) -> str:
    """One panel as an `<svg>` element to stand in a page: transparent, text as text, colours from the page's CSS.

    Args:
      draw: the panel.
      name: unique in the page; prefixes the ids that the drawing refers to.
      title: what the figure shows, for readers who cannot see it.
      size: inches.
    """
    stream = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    return _for_page(text[text.index("<svg") :], name, title)


def _for_page(text: str, name: str, title: str) -> str:
    """An SVG with ids of its own, colours as CSS variables, and without a fixed size."""
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, variable)
    # Older readers need xlink; a page does not, and a page without any address in it is easier to trust.
    text = text.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    text = text.replace(' xmlns="http://www.w3.org/2000/svg"', "")
    text = re.sub(r'<svg width="[^"]+" height="[^"]+"', f'<svg role="img" aria-label="{title}"', text, count=1)
    return re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL).strip()
