"""Findings scored from the vector of their own part of the body: which objective's query, which regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from medvl.errors import CheckpointError
from medvl.evaluation.bootstrap import Number
from medvl.evaluation.cases import Cases
from medvl.evaluation.classification import classify, merged_labels, truth_values
from medvl.objectives.parts import OrganPool
from medvl.training.recipe import Recipe
from medvl.training.state import read_state

__all__ = ["ORGAN_ROWS", "Directions", "PartVectors", "Scores", "organ_pool", "organ_section", "part_vectors"]

ORGAN_ROWS = {
    "query": "the objective's query over the regions of the finding's part",
    "regions": "mean of the regions of the finding's part",
    "whole": "whole volume",
    "chance": "chance",
}
_POOL = "objective.organs.pool."

Directions = Mapping[str, tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " dim"]]]
"""Finding to the unit vectors of its prompts for and against, in the space of regions."""


@dataclass(frozen=True)
class PartVectors:
    """One vector for each part of the body that a volume shows; NaN for one that it does not show.

    Attributes:
        regions: the mean of the part's regions.
        query: of the objective's query over them; None where the objective has none.
    """

    regions: Float[np.ndarray, "parts dim"]
    query: Float[np.ndarray, "parts dim"] | None


@dataclass(frozen=True)
class Scores:
    """AUROC of findings from their parts.

    Attributes:
        numbers: ``<finding>/AUROC/<row>``, rows as in ``ORGAN_ROWS``; finding ``macro`` is the mean.
        left_out: reason to number of studies.
    """

    numbers: dict[str, Number]
    left_out: dict[str, int]


def organ_pool(checkpoint: Path | None, recipe: Recipe | None) -> OrganPool | None:
    """Return the queries that an objective learned for the parts; None where it has none, or kept none.

    Args:
        checkpoint: of a run; a bundle keeps the model alone.
        recipe: of the run.

    Raises:
        CheckpointError: the state of training is damaged, or its queries are of another kind.
    """
    if checkpoint is None or recipe is None or not (checkpoint / "training").is_dir():
        return None
    state = read_state(checkpoint / "training")["state_dict"]
    tensors = {name.removeprefix(_POOL): value for name, value in state.items() if name.startswith(_POOL)}
    if not tensors:
        return None
    parts, dim = tensors["query"].shape
    pool = OrganPool(parts=parts, dim=dim, heads=int(recipe.objective.options.get("heads", 4)))
    wrong = sorted(tensors.keys() ^ pool.state_dict().keys())
    if wrong:
        raise CheckpointError(
            f"the run's queries of organs are not those of this version: first tensor '{wrong[0]}'.",
            hint="Evaluate its bundle, which has none, or train again.",
        )
    pool.load_state_dict(tensors)
    return pool.eval()


@torch.inference_mode()
def part_vectors(
    regions: Float[np.ndarray, "regions dim"],
    cells: Bool[np.ndarray, "regions parts"],
    *,
    pool: OrganPool | None,
) -> PartVectors:
    """Return the vectors of the parts of one volume.

    Args:
        regions: of the volume.
        cells: which regions lie in which part.
        pool: queries of the parts.
    """
    there = np.asarray(cells.any(0))
    mean = np.full((cells.shape[1], regions.shape[1]), np.nan, np.float32)
    for part in np.flatnonzero(there):
        mean[part] = regions[cells[:, part]].mean(0)
    if pool is None:
        return PartVectors(mean, None)
    known = np.zeros((len(regions), len(pool.query)), bool)
    width = min(known.shape[1], cells.shape[1])
    known[:, :width] = cells[:, :width]
    asked = pool(torch.from_numpy(regions)[None], torch.from_numpy(known)[None])[0].numpy()
    query = np.full_like(mean, np.nan)
    query[:width] = np.where(there[:width, None], asked[:width], np.nan)
    return PartVectors(mean, query)


def organ_section(
    cases: Cases,
    parts: Mapping[int, PartVectors],
    whole: Float[np.ndarray, "images findings"],
    *,
    findings: Sequence[str],
    numbers: Sequence[int],
    directions: Directions,
    uncertain: str,
    resamples: int,
    seed: int,
) -> Scores:
    r"""Score each finding from the vector of its part: $\cos(v_p, t^+) - \cos(v_p, t^-)$, study by study.

    A study counts for a finding where a volume of it has a segmentation that shows the part; all rows stand
    on the same studies.

    Args:
        cases: the evaluated cases.
        parts: vectors of the parts, by row of the cases' images.
        whole: zero-shot scores of whole volumes.
        findings: names of the columns.
        numbers: the part of each finding, from 1; 0 for none.
        directions: prompts of each finding.
        uncertain: what becomes of uncertain labels.
        resamples: of the patient bootstrap.
        seed: of its draws.
    """
    columns = [i for i, number in enumerate(numbers) if number]
    if not parts or not columns:
        return Scores({}, {})
    rows: dict[str, list[int]] = {}
    for row in parts:
        rows.setdefault(cases.images[row].study_id, []).append(row)
    studies = sorted(rows)
    named = [findings[i] for i in columns]
    labels = [merged_labels([cases.images[row].labels for row in rows[study]]) for study in studies]
    truth = truth_values(labels, named, uncertain=uncertain)
    mixed = [name for name, column in zip(named, truth.T, strict=True) if {0.0, 1.0} <= set(column)]
    tables = {"regions": np.full(truth.shape, np.nan), "whole": np.full(truth.shape, np.nan)}
    if all(found.query is not None for found in parts.values()):
        tables["query"] = np.full(truth.shape, np.nan)
    for i, study in enumerate(studies):
        for j, column in enumerate(columns):
            part = numbers[column] - 1
            seen = [row for row in rows[study] if not np.isnan(parts[row].regions[part]).any()]
            if not seen:
                truth[i, j] = np.nan
                continue
            towards = directions[findings[column]]
            tables["whole"][i, j] = whole[seen, column].mean()
            for name in tables.keys() - {"whole"}:
                vectors = [getattr(parts[row], name)[part] for row in seen]
                tables[name][i, j] = np.mean([_score(vector, *towards) for vector in vectors])
    missing = int(np.isnan(tables["whole"]).sum())
    dropped: dict[str, str] = {}
    patients = [cases.images[rows[study][0]].patient_id for study in studies]
    found: dict[str, Number] = {}
    for name, scores in tables.items():
        result = classify(
            truth,
            np.nan_to_num(scores),  # where the part is not seen, the truth is NaN and nothing is read
            findings=named,
            patients=patients,
            resamples=resamples,
            seed=seed,
        )
        dropped = result.dropped
        found |= {f"{f}/AUROC/{name}": result.numbers[f"{f}/AUROC"] for f in (*result.findings, "macro")
                  if f"{f}/AUROC" in result.numbers}  # fmt: skip
    for key in [key for key in found if key.endswith("/regions")]:
        found[f"{key.removesuffix('regions')}chance"] = Number(0.5, n=found[key].n)
    left_out = {
        "volume without a segmentation (out of the organs' AUROC)": len(cases.images) - len(parts),
        "study and finding whose part the segmentation does not show": missing,
    } | {
        f"finding {finding}, which has one class where its part is seen ({why})": int(
            (~np.isnan(truth[:, named.index(finding)])).sum()
        )
        for finding, why in dropped.items()
        if finding in mixed  # the others have one class anyway, and zero-shot says so
    }
    return Scores(found, {why: n for why, n in left_out.items() if n})


def _score(
    vector: Float[np.ndarray, " dim"], for_it: Float[np.ndarray, " dim"], against: Float[np.ndarray, " dim"]
) -> float:
    unit = vector.astype(np.float64) / max(float(np.linalg.norm(vector)), 1e-12)
    return float(unit @ for_it - unit @ against)
