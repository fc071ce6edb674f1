"""Recorded episodes as one animated SVG file: no script, so that it also plays where an image stands, as in a README."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 860, 190
"""Size of one episode's panel, in pixels."""

SCALE = 92.0
"""Pixels per metre."""

GROUND = HEIGHT - 30
"""Height of the ground in a panel, in pixels from its top."""

SLOWEST = 4.0
"""Shortest time in seconds that an animation plays; shorter episodes are slowed down, and the caption says how much."""

STYLE = """
.paper { fill: #ffffff; }
.ink { stroke: #1b1f24; } .near { stroke: #e6750a; } .far { stroke: #1f77b4; } .ground { stroke: #8a8f98; stroke-width: 1; }
text { fill: #1b1f24; font: 14px system-ui, sans-serif; } text.tick { fill: #8a8f98; font-size: 11px; text-anchor: middle; }
path { stroke-linecap: round; fill: none; } .still { display: none; }
@media (prefers-color-scheme: dark) { .paper { fill: #0d1117; } }
@media (prefers-color-scheme: dark) { .ink { stroke: #e6e9ee; } text { fill: #e6e9ee; } .far { stroke: #6fb3e8; } }
@media (prefers-reduced-motion: reduce) { .still { display: inline; } .moving { display: none; } }
"""


def animated_svg(data: dict[str, Any], title: str) -> str:
    """Return an SVG document of one task's episodes, before adaptation above and after it below, on one clock.

    Where the viewer asks for reduced motion it shows the middle of each episode. Colours follow the light or dark scheme.

    Args:
      data: of one task, as `animation.player_data` returns it.
      title: for readers who cannot see the picture.

    Raises:
      ValueError: `data` holds more or less than one task.
    """
    if len(data["tasks"]) != 1:
        raise ValueError(f"an animated SVG shows one task, not {len(data['tasks'])}")
    (task,) = data["tasks"]
    body = data["bodies"][task["body"]]
    frames = max(len(clip["frames"]) for clip in task["clips"])
    real = max(frames - 1, 1) * body["dt"]
    seconds = max(real, SLOWEST)
    pace = "" if seconds == real else f", {seconds / real:.0f} times slower than real"
    panels = [
        _panel(body, clip, f"{kind}: return {clip['return']:.1f}{pace}", frames, seconds, row * HEIGHT)
        for row, (kind, clip) in enumerate(zip(data["kinds"], task["clips"], strict=True))
    ]
    size = f'width="{WIDTH}" height="{HEIGHT * len(panels)}" viewBox="0 0 {WIDTH} {HEIGHT * len(panels)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>\n<title>{html.escape(title)}</title>'
    paper = '<rect class="paper" width="100%" height="100%"/>'  # the page's own scheme may be another than the viewer's
    return "\n".join([head, f"<style>{STYLE}</style>", paper, *panels, "</svg>\n"])


def _panel(body: dict[str, Any], clip: dict[str, Any], caption: str, frames: int, seconds: float, top: int) -> str:
    """Return one episode: caption, ground with a mark per metre, and a path per capsule. The camera follows the torso."""
    poses = np.asarray(clip["frames"], float).reshape(len(clip["frames"]), -1, 3) / 1000.0
    poses = np.concatenate([poses, np.repeat(poses[-1:], frames - len(poses), 0)])  # after a fall: the last pose
    camera = poses[:, 0, 0]
    ends = _ends(body, poses)
    ends[..., 0] = WIDTH / 2 + SCALE * (ends[..., 0] - camera[:, None, None])
    ends[..., 1] = GROUND - SCALE * ends[..., 1]
    lines = [_capsule(body, index, ends[:, index], seconds) for index in range(ends.shape[1])]
    clipping = f'<svg x="0" y="{top}" width="{WIDTH}" height="{HEIGHT}">'
    return "\n".join(
        [clipping, f'<text x="12" y="22">{html.escape(caption)}</text>', _ground(camera, seconds), *lines, "</svg>"]
    )


def _ends(body: dict[str, Any], poses: np.ndarray) -> np.ndarray:
    """Return the capsules' ends `[F, capsules, 2, 2]` (x, z in metres) at poses `[F, links, 3]` (x, z, angle)."""
    shape = np.asarray(body["shape"], float)[:, :4].reshape(-1, 2, 2)
    x, z, angle = np.moveaxis(poses[:, body["link"]], -1, 0)[..., None]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([x + shape[..., 0] * cos - shape[..., 1] * sin, z + shape[..., 0] * sin + shape[..., 1] * cos], axis=-1)


def _capsule(body: dict[str, Any], index: int, ends: np.ndarray, seconds: float) -> str:
    """Return one capsule: as a moving path, and as a still one at the middle of the episode."""
    link = body["link"][index]
    look = "ink" if link == 0 else "far" if link < 4 else "near"
    paths = [f"M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}" for a, b in ends]
    width = f'stroke-width="{2 * SCALE * body["shape"][index][4]:.1f}"'
    still = f'<path class="still {look}" {width} d="{paths[len(paths) // 2]}"/>'
    return f'<path class="moving {look}" {width} d="{paths[0]}">{_animate("d", paths, seconds)}</path>{still}'


def _ground(camera: np.ndarray, seconds: float) -> str:
    """Return the ground with a mark per metre, moved against the camera."""
    low, high = (int(f(x + s * WIDTH / 2 / SCALE)) for f, x, s in ((np.floor, camera.min(), -1), (np.ceil, camera.max(), 1)))
    marks = [
        f'<path class="ground" d="M{SCALE * metre:.0f} {GROUND}v5"/>'
        f'<text class="tick" x="{SCALE * metre:.0f}" y="{GROUND + 18}">{metre} m</text>'
        for metre in range(low, high + 1)
    ]
    shifts = [f"{WIDTH / 2 - SCALE * x:.1f} 0" for x in camera]
    values = ";".join(shifts)
    move = f'<animateTransform attributeName="transform" type="translate" values="{values}" {_clock(seconds)}/>'
    moving = f'<g class="moving" transform="translate({shifts[0]})">{"".join(marks)}{move}</g>'
    still = f'<g class="still" transform="translate({shifts[len(shifts) // 2]})">{"".join(marks)}</g>'
    return f'<path class="ground" d="M0 {GROUND}H{WIDTH}"/>{moving}{still}'


def _animate(attribute: str, values: Sequence[str], seconds: float) -> str:
    return f'<animate attributeName="{attribute}" values="{";".join(values)}" {_clock(seconds)}/>'


def _clock(seconds: float) -> str:
    return f'dur="{seconds:.2f}s" repeatCount="indefinite"'
