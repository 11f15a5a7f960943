"""The page of an evaluation: tables, curves, galleries and heat maps in one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from medvl.evaluation import figures
from medvl.evaluation.cases import Cases
from medvl.evaluation.embedding import Embedded
from medvl.evaluation.organs import ORGAN_ROWS
from medvl.evaluation.pictures import (
    case_picture,
    film_picture,
    heat_picture,
    volume_heat_picture,
    volume_picture,
)
from medvl.evaluation.sections import Grounding, Grounds, Retrieved, Scored
from medvl.evaluation.tables import (
    MODE_NAMES,
    ROW_NAMES,
    cell,
    directions,
    grounding_rows,
    is_rank,
    organ_rows,
    retrieval_rows,
    zero_shot_rows,
)
from medvl.heads.grounding import heat_map
from medvl.notice import NOTICE
from medvl.planes import Montage, window_of
from medvl.progress import Progress
from medvl.records import IS_PRESENT, Record
from medvl.store import Store, write_atomic

__all__ = ["Results", "write_page"]

_QUERIES = 4
_TOP = 5
_MAPS = 12
_MAP_PAIRS = 600
_MONTAGE_PX = 480


@dataclass(frozen=True)
class Results:
    """Everything that a page shows."""

    metrics: Mapping[str, Any]
    store: Store
    cases: Cases
    embedded: Embedded
    retrieved: Retrieved
    scored: Scored
    grounds: Grounds

    @property
    def noun(self) -> str:
        """What an image is called."""
        return str(self.metrics["data"].get("noun", "film"))


def write_page(out: Path, results: Results, *, progress: Progress | None = None) -> Path:
    """Write ``report.html`` and ``figures/`` into ``out`` and return the page.

    What galleries and heat maps show is drawn at random with the evaluation's seed, never chosen.

    Args:
        out: a folder that exists.
        results: what to show.
        progress: called as parts are done.
    """
    parts = ("figures", "gallery", "heat maps", "page")

    def done(part: str) -> None:
        if progress is not None:
            progress(parts.index(part) + 1, len(parts), "drawing")

    random = np.random.default_rng([results.metrics["protocol"]["seed"], 5])
    drawn = _figures(out / "figures", results)
    done("figures")
    gallery = _gallery(results, random)
    done("gallery")
    maps = _maps(results, random)
    done("heat maps")
    template = (resources.files("medvl.evaluation") / "report.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = cell
    environment.filters["words"] = lambda name: name.replace("_", " ")
    numbers = results.metrics["numbers"]
    organs, by_part = organ_rows(numbers)
    html = environment.from_string(template).render(
        notice=NOTICE,
        about=results.metrics,
        noun=results.noun,
        tiles=_tiles(results.metrics),
        tables=_tables(results.metrics),
        zero_shot=zero_shot_rows(numbers, results.metrics["protocol"]),
        organs={row: ORGAN_ROWS[row] for row in organs},
        by_part=by_part,
        grounding=grounding_rows(numbers),
        figures={name: jinja2.utils.markupsafe.Markup(svg) for name, svg in drawn.items()},
        gallery=gallery,
        maps=maps,
    )
    write_atomic(out / "report.html", html.encode())
    done("page")
    return out / "report.html"


def _figures(folder: Path, results: Results) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = results.metrics["numbers"]
    drawn = {"recall": figures.recall_figure(numbers, noun=results.noun)}
    if results.scored.curves:
        drawn["roc"] = figures.roc_figure(results.scored.curves, numbers)
    films, texts = _partners(results)
    if len(films) > _MAP_PAIRS:
        kept = np.random.default_rng(0).choice(len(films), _MAP_PAIRS, replace=False)
        films, texts = films[kept], texts[kept]
    if len(films) >= 3:
        told = results.cases.with_text
        groups = [_group(results.cases.images[told[row]]) for row in films]
        drawn["map"] = figures.embedding_map(
            results.embedded.images[[told[row] for row in films]],
            results.embedded.texts[texts],
            groups,
            noun=results.noun,
        )
    for name, figure in drawn.items():
        figures.save(figure, folder / name)
    return {name: figures.inline_svg(folder / f"{name}.svg") for name in drawn}


def _partners(results: Results) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of films with a report, and the row of each one's report."""
    first: dict[int, int] = {}
    for row, study in enumerate(results.retrieved.texts.study.tolist()):
        first.setdefault(study, row)
    studies = results.retrieved.images.study.tolist()
    return np.arange(len(studies)), np.asarray([first[study] for study in studies])


def _group(record: Record) -> str:
    present = sorted(name for name, state in record.labels.items() if IS_PRESENT.get(state))
    if not record.labels:
        return "unlabelled"
    if len(present) > 1:
        return "several"
    return present[0].replace("_", " ") if present else "no finding"


def _findings(record: Record) -> str:
    present = sorted(name for name, state in record.labels.items() if IS_PRESENT.get(state))
    return ", ".join(present).replace("_", " ") if present else _group(record)


def _spread(labels: np.ndarray, random: np.random.Generator, count: int) -> list[int]:
    """Draw rows at random, first one of each label, then any."""
    rows = random.permutation(len(labels)).tolist()
    first = {int(labels[row]): row for row in reversed(rows)}
    ordered = sorted(first.values(), key=rows.index)
    return [*ordered, *(row for row in rows if row not in set(ordered))][:count]


def _tiles(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    tiles, numbers = [], metrics["numbers"]
    for direction, name in directions(metrics).items():
        prefix = f"retrieval/{direction}/id"
        if f"{prefix}/R@1/ceiling" not in numbers:
            continue
        k = max(k for k in (1, 5, 10) if f"{prefix}/R@{k}/model" in numbers)
        chance, best = numbers[f"{prefix}/R@{k}/chance"]["value"], numbers[f"{prefix}/R@{k}/ceiling"]["value"]
        tiles.append(
            _tile(
                f"R@{k}, {name}",
                numbers[f"{prefix}/R@{k}/model"],
                f"chance {chance:.3f} · ceiling {best:.3f}",
            )
        )
    if "zeroshot/macro/AUROC/model" in numbers:
        number = numbers["zeroshot/macro/AUROC/model"]
        tiles.append(_tile("zero-shot AUROC, mean of findings", number, "chance 0.500"))
    for row in ("query", "regions"):
        if f"organs/macro/AUROC/{row}" in numbers:
            whole = numbers["organs/macro/AUROC/whole"]["value"]
            number = numbers[f"organs/macro/AUROC/{row}"]
            tiles.append(_tile("AUROC from the finding's own part", number, f"whole volume {whole:.3f}"))
            break
    if "grounding/all/pointing/model" in numbers:
        chance = numbers["grounding/all/pointing/chance"]["value"]
        tiles.append(_tile("pointing game", numbers["grounding/all/pointing/model"], f"chance {chance:.3f}"))
    return tiles


def _tile(name: str, number: Mapping[str, Any], beside: str) -> dict[str, str]:
    interval = "" if number.get("low") is None else f"{number['low']:.3f}–{number['high']:.3f}"
    return {"name": name, "value": f"{number['value']:.3f}", "interval": interval, "beside": beside}


def _tables(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables, numbers = [], metrics["numbers"]
    for mode, right in MODE_NAMES.items():
        for direction, name in directions(metrics).items():
            columns, rows = retrieval_rows(numbers, direction, mode)
            if columns:
                tables.append(
                    {
                        "title": name,
                        "right": right,
                        "mode": mode,
                        "n": numbers[f"retrieval/{direction}/{mode}/R@1/model"]["n"],
                        "columns": columns,
                        "rows": [
                            {
                                "key": row,
                                "name": ROW_NAMES[row],
                                "cells": [
                                    cell(value, digits=1 if is_rank(column) else 3)
                                    for column, value in zip(columns, values, strict=True)
                                ],
                            }
                            for row, values in rows
                        ],
                    }
                )
    return tables


def _gallery(results: Results, random: np.random.Generator) -> dict[str, list[dict[str, Any]]]:
    retrieved, cases = results.retrieved, results.cases
    told = cases.with_text
    by_text, by_image = [], []
    for column in _spread(retrieved.texts.label, random, _QUERIES):
        scores = retrieved.scores[:, column]
        by_text.append(
            {
                "words": cases.texts[column].words,
                "hits": [
                    {
                        "picture": _picture(results, told[row], side_px=240),
                        "score": f"{scores[row]:.3f}",
                        "right": _right(results, row, column),
                        "group": _findings(cases.images[told[row]]),
                    }
                    for row in _top(scores)
                ],
                "rank": _rank(scores, retrieved.images.study == retrieved.texts.study[column]),
            }
        )
    for row in _spread(retrieved.images.label, random, _QUERIES):
        scores = retrieved.scores[row]
        by_image.append(
            {
                "picture": _picture(results, told[row], side_px=300),
                "group": _findings(cases.images[told[row]]),
                "hits": [
                    {
                        "words": cases.texts[column].words,
                        "score": f"{scores[column]:.3f}",
                        "right": _right(results, row, column),
                    }
                    for column in _top(scores)[:3]
                ],
                "rank": _rank(scores, retrieved.texts.study == retrieved.images.study[row]),
            }
        )
    return {"text": by_text, "image": by_image}


def _picture(results: Results, row: int, *, side_px: int) -> str:
    record = results.cases.images[row]
    return case_picture(record, results.store.pixels(record), side_px=side_px)


def _top(scores: np.ndarray) -> list[int]:
    return np.argsort(-scores, kind="stable")[:_TOP].tolist()


def _rank(scores: np.ndarray, own: np.ndarray) -> str:
    best = scores[own].max()
    above, equal = int((scores > best).sum()), int((scores == best).sum() - (scores[own] == best).sum())
    return str(above + 1) if not equal else f"{above + 1}–{above + equal + 1}"


def _right(results: Results, image: int, text: int) -> str:
    left, right = results.retrieved.images, results.retrieved.texts
    if left.study[image] == right.study[text]:
        return "own"
    if left.text[image] == right.text[text]:
        return "text"
    return "label" if left.label[image] == right.label[text] >= 0 else ""


def _maps(results: Results, random: np.random.Generator) -> list[dict[str, Any]]:
    items = [results.grounds.items[row] for row in random.permutation(len(results.grounds.items)).tolist()]
    by_finding: dict[str, list[Grounding]] = {}
    for item in items:
        by_finding.setdefault(item.finding, []).append(item)
    each = -(-_MAPS // max(len(by_finding), 1))
    chosen = [item for finding in sorted(by_finding) for item in by_finding[finding][:each]][:_MAPS]
    return [_map(results, item) for item in chosen]


def _map(results: Results, item: Grounding) -> dict[str, Any]:
    record = results.cases.images[item.row]
    stored = results.store.pixels(record)
    heat = heat_map(item.cells, input=item.lattice, shape=stored.shape)
    pictures = _volume_pictures if stored.ndim == 3 else _film_pictures
    return {"finding": item.finding, "pictures": pictures(record, stored, heat, item), "hit": item.hit == 1}


def _hottest(item: Grounding) -> list[float]:
    """Return the middle of the hottest cell, in pixels or voxels of the stored array."""
    cell = np.unravel_index(np.nanargmax(item.cells), item.cells.shape)
    axes = zip(
        cell, item.cells.shape, item.lattice.size_px, item.lattice.scale, item.lattice.offset, strict=True
    )
    return [((at + 0.5) / cells * size - offset) / scale for at, cells, size, scale, offset in axes]


def _film_pictures(
    record: Record, film: np.ndarray, heat: np.ndarray, item: Grounding
) -> list[dict[str, Any]]:
    height, width = film.shape
    y, x = _hottest(item)
    boxes: Sequence[dict[str, float]] = [
        {
            "left": 100 * box.x0 / width,
            "top": 100 * box.y0 / height,
            "width": 100 * (box.x1 - box.x0) / width,
            "height": 100 * (box.y1 - box.y0) / height,
        }
        for box in item.boxes
    ]
    return [
        {"src": film_picture(film), "boxes": boxes, "rings": []},
        {
            "src": heat_picture(film, heat),
            "boxes": boxes,
            "rings": [(_inside(x / width), _inside(y / height))],
        },
    ]


def _volume_pictures(
    record: Record, volume: np.ndarray, heat: np.ndarray, item: Grounding
) -> list[dict[str, Any]]:
    """Return the slices through the first box, and those through the hottest cell under the map."""
    spacing, window = record.spacing_mm or (1.0, 1.0, 1.0), window_of([item.finding])
    hottest, box = tuple(_hottest(item)), item.boxes[0]
    middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2, ((box.z0 or 0) + (box.z1 or 0)) / 2)
    truth, found = (
        Montage(volume.shape, spacing, at=at, side_px=_MONTAGE_PX, affine_ras=record.affine_ras)
        for at in (middle, hottest)
    )
    return [
        {
            "src": volume_picture(volume, truth, window=window),
            "boxes": [place for box in item.boxes for place in truth.boxes(box)],
            "rings": [],
        },
        {
            "src": volume_heat_picture(volume, heat, found, window=window),
            "boxes": [place for box in item.boxes for place in found.boxes(box)],
            "rings": found.mark(hottest),
        },
    ]


def _inside(share: float) -> float:
    """Return percent; the centre of a cell at the edge of the film can lie just outside it."""
    return 100 * min(max(share, 0.02), 0.98)
