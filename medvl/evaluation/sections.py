"""The sections of an evaluation: retrieval, zero-shot findings and grounding, each with its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medvl.evaluation.bootstrap import Bootstrap, Number, spread
from medvl.evaluation.cases import Cases
from medvl.evaluation.classification import auroc, classify, merged_labels, roc_points, truth_values
from medvl.evaluation.embedding import Embedded
from medvl.evaluation.grounding import box_mask, cells_in_boxes, contrast_to_noise, mean_iou, pointing
from medvl.evaluation.retrieval import Keys, cosine_scores
from medvl.evaluation.retrieval_rows import Direction, direction_numbers, gallery_numbers, sideways_numbers
from medvl.heads.grounding import cell_map, heat_map
from medvl.progress import Progress
from medvl.records import Box
from medvl.sliding import Lattice
from medvl.specs import InputSpec, VolumeInput

__all__ = [
    "Grounding",
    "Grounds",
    "Retrieved",
    "Scored",
    "grounding_section",
    "retrieval_section",
    "zero_shot_section",
]

_DEALS = 20


@dataclass(frozen=True)
class Retrieved:
    """Retrieval in both directions.

    Attributes:
        numbers: ``<direction>/<mode>/<metric>/<row>``.
        scores: images (those with a report) by texts.
        images, texts: the keys of both sides.
        left_out: reason to number of queries.
    """

    numbers: dict[str, Number]
    scores: Float[np.ndarray, "images texts"]
    images: Keys
    texts: Keys
    left_out: dict[str, int]


def retrieval_section(
    cases: Cases,
    embedded: Embedded,
    *,
    others: Mapping[str, Float[np.ndarray, "images texts"]],
    sideways: bool = False,
    resamples: int,
    seed: int,
) -> Retrieved:
    """Score both directions of retrieval.

    Args:
        cases: what was embedded.
        embedded: the vectors.
        others: score matrices of baselines, images with a report by texts.
        sideways: also how well images find other images: ``image_to_image``.
        resamples: of the patient bootstrap.
        seed: of every draw.
    """
    told = np.asarray(cases.with_text, np.int64)
    images, texts = cases.keys()
    scores = cosine_scores(embedded.images[told], embedded.texts)
    by_image = [cases.images[row].patient_id for row in told]
    by_text = [text.patient_id for text in cases.texts]
    numbers: dict[str, Number] = {}
    left_out: dict[str, int] = {}
    for name, direction in {
        "image_to_text": Direction(scores, images, texts, by_image, others),
        "text_to_image": Direction(
            scores.T, texts, images, by_text, {row: matrix.T for row, matrix in others.items()}
        ),
    }.items():
        found, unasked = direction_numbers(direction, resamples=resamples, seed=seed)
        found |= gallery_numbers(direction, seed=seed)
        numbers |= {f"{name}/{key}": number for key, number in found.items()}
        left_out |= {f"{name} query without a {mode} key": n for mode, n in unasked.items() if n}
    if sideways:
        found, unasked = sideways_numbers(
            cosine_scores(embedded.images[told], embedded.images[told]),
            images,
            patients=by_image,
            resamples=resamples,
            seed=seed,
        )
        numbers |= {f"image_to_image/{key}": number for key, number in found.items()}
        left_out |= {f"image_to_image query without a {mode} key": n for mode, n in unasked.items() if n}
    return Retrieved(numbers, scores, images, texts, left_out)


@dataclass(frozen=True)
class Scored:
    """Zero-shot findings, one score a study.

    Attributes:
        numbers: ``<finding>/<metric>/<row>``; finding ``macro`` is the mean.
        curves: finding to false and true positive rates, for the findings with both classes.
        left_out: the other findings, with the number of studies that are labelled for each.
    """

    numbers: dict[str, Number]
    curves: dict[str, tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]]
    left_out: dict[str, int]


def zero_shot_section(
    cases: Cases,
    scores: Float[np.ndarray, "images findings"],
    *,
    findings: Sequence[str],
    uncertain: str,
    resamples: int,
    seed: int,
) -> Scored:
    """Compare zero-shot scores with labels, study by study; a study's score is the mean over its films.

    Args:
        cases: the evaluated cases.
        scores: one row per image of the cases.
        findings: names of the columns.
        uncertain: what becomes of uncertain labels, see :func:`truth_values`.
        resamples: of the patient bootstrap.
        seed: of every draw.
    """
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(cases.images):
        rows.setdefault(record.study_id, []).append(row)
    studies = sorted(rows)
    scores = np.stack([scores[rows[study]].mean(0) for study in studies])
    labels = [merged_labels([cases.images[i].labels for i in rows[study]]) for study in studies]
    patients = [cases.images[rows[study][0]].patient_id for study in studies]
    truth = truth_values(labels, findings, uncertain=uncertain)
    found = classify(truth, scores, findings=findings, patients=patients, resamples=resamples, seed=seed)
    numbers = {f"{key}/model": number for key, number in found.numbers.items() if "prevalence" not in key}
    curves = {}
    random = np.random.default_rng([seed, 2])
    dealt: dict[str, list[float]] = {}
    for finding in found.findings:
        column = list(findings).index(finding)
        known = ~np.isnan(truth[:, column])
        right, ranked = truth[known, column], scores[known, column]
        curves[finding] = roc_points(right, ranked)
        dealt[finding] = [auroc(random.permutation(right), ranked) for _ in range(_DEALS)]
        prevalence = found.numbers[f"{finding}/prevalence"]
        numbers[f"{finding}/AP/chance"] = prevalence
        numbers[f"{finding}/AUROC/chance"] = Number(0.5, n=prevalence.n)
        numbers[f"{finding}/AUROC/shuffled"] = spread(dealt[finding], n=prevalence.n)
    if found.findings:
        n = len(studies)
        numbers["macro/AUROC/chance"] = Number(0.5, n=n)
        numbers["macro/AUROC/shuffled"] = spread(np.mean(list(dealt.values()), axis=0).tolist(), n=n)
        shares = [numbers[f"{finding}/AP/chance"].value for finding in found.findings]
        numbers["macro/AP/chance"] = Number(float(np.mean(shares)), n=n)
    dropped = {
        f"finding {finding}, which has one class ({why})": int((~np.isnan(truth[:, i])).sum())
        for i, finding in enumerate(findings)
        for why in [found.dropped.get(finding)]
        if why
    }
    return Scored(numbers, curves, dropped)


@dataclass(frozen=True)
class Grounding:
    """One finding on one film or volume: where the model looks and where the boxes are.

    Attributes:
        row: of the cases' images.
        finding: what is looked for.
        cells: the map.
        boxes: in the stored array.
        hit: of the pointing game.
        lattice: where the cells lie over the stored array.
    """

    row: int
    finding: str
    cells: Float[np.ndarray, " *grid"]
    boxes: tuple[Box, ...]
    hit: float
    lattice: Lattice


@dataclass(frozen=True)
class Grounds:
    """Grounding of every boxed finding.

    Attributes:
        numbers: ``<finding>/<metric>/<row>``; finding ``all`` is every pair of film and finding.
        items: what the numbers rest on, for pictures.
        left_out: reason to number of pairs.
    """

    numbers: dict[str, Number]
    items: list[Grounding]
    left_out: dict[str, int]


def grounding_section(
    cases: Cases,
    embedded: Embedded,
    phrases: Mapping[str, Float[np.ndarray, " dim"]],
    *,
    input: InputSpec | VolumeInput,
    resamples: int,
    seed: int,
    progress: Progress | None = None,
) -> Grounds:
    """Compare the map of each boxed finding with its boxes.

    The shuffled row deals the maps of one finding to other films with that finding: what it scores is
    the finding's usual place, not its place on this film.

    Args:
        cases: the evaluated cases.
        embedded: their region vectors.
        phrases: finding to the unit vector of its prompts.
        input: how a stored film became the tensor.
        resamples: of the patient bootstrap.
        seed: of every draw.
        progress: called as films are done.
    """
    items: list[Grounding] = []
    columns: dict[str, list[float]] = {name: [] for name in ("hit", "chance", "CNR", "absolute", "IoU")}
    touched = []
    rows = sorted(embedded.regions)
    for done, row in enumerate(rows, start=1):
        record, vectors = cases.images[row], embedded.regions[row]
        shape = tuple(record.shape[-len(vectors.grid) :])
        lattice = vectors.lattice or Lattice.of(input, shape)
        for finding in sorted({box.label for box in record.boxes} & set(phrases)):
            boxes = tuple(box for box in record.boxes if box.label == finding)
            cells = cell_map(vectors.regions[0], phrases[finding], grid=vectors.grid, mask=vectors.mask[0])
            if isinstance(input, InputSpec):
                placed = [input.place_box(box, shape) for box in boxes]
            else:
                placed = [lattice.place(box) for box in boxes]
            inside = cells_in_boxes(placed, grid=vectors.grid, size_px=lattice.size_px)
            hit, chance = pointing(cells, inside)
            heat, mask = heat_map(cells, input=lattice, shape=shape), box_mask(boxes, shape=shape)
            contrast = contrast_to_noise(heat, mask)
            items.append(Grounding(row, finding, cells, boxes, hit, lattice))
            touched.append(inside)
            for name, value in {
                "hit": hit,
                "chance": chance,
                "CNR": np.nan if contrast is None else contrast,
                "absolute": np.nan if contrast is None else abs(contrast),
                "IoU": mean_iou(heat, mask),
            }.items():
                columns[name].append(float(value))
        if progress is not None:
            progress(done, len(rows), "grounding")
    if not items:
        return Grounds({}, [], {})
    values = {name: np.asarray(column) for name, column in columns.items()}
    random = np.random.default_rng([seed, 3])
    dealt = _dealt(items, touched, random)
    numbers: dict[str, Number] = {}
    for finding in ("all", *sorted({item.finding for item in items})):
        chosen = np.asarray([finding in ("all", item.finding) for item in items])
        patients = [cases.images[item.row].patient_id for item in items]
        numbers |= {
            f"{finding}/{key}": number
            for key, number in _grounded(values, dealt, chosen, patients, resamples, seed).items()
        }
    undefined = int(np.isnan(values["CNR"]).sum())
    return Grounds(
        numbers, items, {"boxed finding without a contrast to noise": undefined} if undefined else {}
    )


def _grounded(
    values: Mapping[str, Float[np.ndarray, " items"]],
    dealt: Float[np.ndarray, "deals items"],
    chosen: np.ndarray,
    patients: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, Number]:
    def mean(column: Float[np.ndarray, " items"], use: np.ndarray) -> Number:
        people = [patient for patient, keep in zip(patients, use, strict=True) if keep]
        return Bootstrap(people, resamples=resamples, seed=seed).mean(column[use])

    numbers = {
        "pointing/model": mean(values["hit"], chosen),
        "pointing/chance": Number(float(values["chance"][chosen].mean()), n=int(chosen.sum())),
        "pointing/shuffled": spread(dealt[:, chosen].mean(1).tolist(), n=int(chosen.sum())),
        "mIoU/model": mean(values["IoU"], chosen),
    }
    defined = chosen & ~np.isnan(values["CNR"])
    if defined.any():
        numbers["CNR/model"] = mean(values["CNR"], defined)
        numbers["|CNR|/model"] = mean(values["absolute"], defined)
        numbers["CNR/chance"] = Number(0.0, n=int(defined.sum()))
    return numbers


def _dealt(
    items: Sequence[Grounding], touched: Sequence[np.ndarray], random: np.random.Generator
) -> Float[np.ndarray, "deals items"]:
    hits = np.empty((_DEALS, len(items)))
    for finding in {item.finding: None for item in items}:
        rows = [row for row, item in enumerate(items) if item.finding == finding]
        for deal in range(_DEALS):
            for row, other in zip(rows, random.permutation(rows), strict=True):
                cells = _onto(items[other].cells, touched[row].shape)
                hits[deal, row] = pointing(cells, touched[row])[0]
    return hits


def _onto(cells: Float[np.ndarray, " *grid"], shape: tuple[int, ...]) -> Float[np.ndarray, " *other"]:
    """Return a map on the grid of another volume: the nearest cell, both grids stretched to one size."""
    if cells.shape == shape:
        return cells
    sides = zip(cells.shape, shape, strict=True)
    return cells[np.ix_(*(((np.arange(take) + 0.5) * have / take).astype(int) for have, take in sides))]
