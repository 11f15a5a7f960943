"""Figures of an evaluation: one palette, vector graphics that follow the page's light or dark ink."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medvl.evaluation.tables import DIRECTIONS, MODE_NAMES

__all__ = [
    "FINDING_COLOURS",
    "IMAGE",
    "TEXT",
    "embedding_map",
    "inline_svg",
    "recall_figure",
    "roc_figure",
    "save",
]

IMAGE, TEXT = "#2a7fb8", "#d9822b"
"""Of films and of reports, in every figure."""
FINDING_COLOURS = ("#2a7fb8", "#d9822b", "#3a9d6e", "#b5529c", "#c8a415", "#7a6fc2", "#c2473d", "#5aa7a7")
_INK, _SOFT, _LINE = "#1b2430", "#5d6b7a", "#dde3e9"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "medvl",
    "text.color": _INK,
    "axes.labelcolor": _SOFT,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "grid.color": _LINE,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
}


def recall_figure(numbers: Mapping[str, Any], *, noun: str = "film") -> Figure:
    """Draw R@1, R@5 and R@10 of both directions with intervals, between chance and ceiling.

    Args:
        numbers: of an evaluation.
        noun: what an image is called.
    """
    modes = [mode for mode in MODE_NAMES if f"retrieval/image_to_text/{mode}/R@1/model" in numbers]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * len(modes) + 0.3, 3.3), layout="constrained")
        panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
        for axes, mode in zip(panels, modes, strict=True):
            _recall_panel(axes, numbers, mode, noun)
            axes.set_title(f"right = {MODE_NAMES[mode]}")
        panels[0].set_ylabel("recall")
        handles, names = panels[0].get_legend_handles_labels()
        order = sorted(range(len(names)), key=lambda i: "→" not in names[i])  # the model's rows first
        handles, names = [handles[i] for i in order], [names[i] for i in order]
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), handletextpad=0.5)
    return figure


def _recall_panel(axes: Axes, numbers: Mapping[str, Any], mode: str, noun: str) -> None:
    ks = [k for k in (1, 5, 10) if f"retrieval/image_to_text/{mode}/R@{k}/model" in numbers]
    axes.set_ylim(0, 1.02)
    axes.set_xlim(-0.5, len(ks) - 0.5)
    axes.set_xticks(range(len(ks)), [f"R@{k}" for k in ks])
    axes.grid(axis="y", linewidth=0.8)
    axes.tick_params(length=0)
    for place, k in enumerate(ks):
        for offset, (direction, colour) in zip(
            (-0.16, 0.16), zip(DIRECTIONS, (IMAGE, TEXT), strict=True), strict=True
        ):
            prefix = f"retrieval/{direction}/{mode}/R@{k}"
            x, first = place + offset, place == 0
            model = numbers[f"{prefix}/model"]
            axes.plot(
                [x, x], [model["low"], model["high"]], color=colour, linewidth=2.2, solid_capstyle="round"
            )
            axes.plot(
                x,
                model["value"],
                "o",
                color=colour,
                markersize=6.5,
                label=DIRECTIONS[direction].replace("film", noun) if first else None,
            )
            for row, line in (("ceiling", "-"), ("chance", ":")):
                value = numbers[f"{prefix}/{row}"]["value"]
                label = row if first and offset < 0 else None
                axes.plot([x - 0.13, x + 0.13], [value, value], line, color=_SOFT, linewidth=1.4, label=label)
            ridge = numbers.get(f"{prefix}/ridge")
            if ridge is not None:
                label = "ridge, towers frozen" if first and offset < 0 else None
                axes.plot(x, ridge["value"], "D", color=_SOFT, markersize=3.5, label=label)


def roc_figure(
    curves: Mapping[str, tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]],
    numbers: Mapping[str, Any],
) -> Figure:
    """Draw one ROC curve a finding, its AUROC and interval above it."""
    columns = min(len(curves), 3 if len(curves) in (3, 5, 6, 9) else 4)
    rows = -(-len(curves) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 9.6 / columns * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.flat[len(curves) :]:
            axes.set_axis_off()
        for axes, (finding, (alarms, hits)) in zip(panels.flat, curves.items(), strict=False):
            area = numbers[f"zeroshot/{finding}/AUROC/model"]
            axes.plot([0, 1], [0, 1], ":", color=_SOFT, linewidth=1.2)
            axes.fill_between(alarms, hits, color=IMAGE, alpha=0.13, linewidth=0)
            axes.plot(alarms, hits, color=IMAGE, linewidth=1.8)
            axes.set_title(finding.replace("_", " "))
            interval = "" if area.get("low") is None else f"\n{area['low']:.2f}–{area['high']:.2f}"
            axes.text(0.97, 0.05, f"{area['value']:.2f}{interval}", ha="right", va="bottom", fontsize=11)
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xticks=(0, 1), yticks=(0, 1))
            axes.tick_params(length=0)
        figure.supxlabel("false positive rate", fontsize=9, color=_SOFT)
        figure.supylabel("true positive rate", fontsize=9, color=_SOFT)
    return figure


def embedding_map(
    images: Float[np.ndarray, "pairs dim"],
    texts: Float[np.ndarray, "pairs dim"],
    groups: Sequence[str],
    *,
    noun: str = "film",
    seed: int = 0,
) -> Figure:
    """Draw films and their reports in one plane: t-SNE of both towers, coloured by finding.

    Each side is centred and scaled to unit length first: two towers occupy two narrow cones (the
    modality gap), which would otherwise be all that the plane shows.

    Args:
        images: film vectors.
        texts: report vectors, row i the partner of image i.
        groups: what colours a pair.
        noun: what an image is called.
        seed: of t-SNE.
    """
    plane = _plane(np.concatenate([_centred(images), _centred(texts)]), seed)
    films, reports = plane[: len(images)], plane[len(images) :]
    common = sorted(set(groups), key=lambda name: (-list(groups).count(name), name))[: len(FINDING_COLOURS)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        lines = np.stack([films, reports], axis=1)
        for line in lines:
            axes.plot(line[:, 0], line[:, 1], color=_SOFT, linewidth=0.4, alpha=0.35, zorder=1)
        for group, colour in [*zip(common, FINDING_COLOURS, strict=False), (None, "#9aa8b6")]:
            chosen = [i for i, name in enumerate(groups) if (name == group if group else name not in common)]
            if not chosen:
                continue
            axes.scatter(
                films[chosen, 0],
                films[chosen, 1],
                s=20,
                color=colour,
                linewidth=0,
                alpha=0.9,
                zorder=3,
                label=group or "other",
            )
            axes.scatter(
                reports[chosen, 0],
                reports[chosen, 1],
                s=20,
                facecolor="none",
                edgecolor=colour,
                linewidth=1.1,
                zorder=2,
            )
        axes.scatter([], [], s=20, color=_SOFT, label=f"filled: {noun}")
        axes.scatter([], [], s=20, facecolor="none", edgecolor=_SOFT, label="hollow: report")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5, labelspacing=0.7)
    return figure


def _centred(rows: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    rows = rows.astype(np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    rows = rows - rows.mean(0)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _plane(rows: Float[np.ndarray, "rows dim"], seed: int) -> Float[np.ndarray, "rows 2"]:
    from sklearn.manifold import TSNE

    _, _, axes = np.linalg.svd(rows, full_matrices=False)
    start = rows @ axes[:2].T
    if len(rows) < 16:
        return start
    start = start / max(float(start[:, 0].std()), 1e-12) * 1e-4
    tsne = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init=start, random_state=seed, n_jobs=1)
    return tsne.fit_transform(rows).astype(np.float64)


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as ``.svg`` and as ``.png`` on white, for slides."""
    with matplotlib.rc_context(_STYLE):
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(stem.with_suffix(".png"), dpi=200, facecolor="white")


def inline_svg(path: Path) -> str:
    """Return an SVG for a page: scaled to its column, its ink that of the page, its ids its own."""
    svg = path.read_text("utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, name in ((_INK, "ink"), (_SOFT, "soft"), (_LINE, "line")):
        svg = svg.replace(colour, f"var(--{name})")
    svg = svg.replace("'DejaVu Sans', sans-serif", "inherit").replace("'DejaVu Sans'", "inherit")
    # Two figures on one page may not share ids, or the second is clipped by the first one's paths.
    mark = path.stem
    svg = re.sub(r'\bid="', f'id="{mark}-', svg)
    svg = svg.replace('xlink:href="#', f'xlink:href="#{mark}-').replace("url(#", f"url(#{mark}-")
    return svg
