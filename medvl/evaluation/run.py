"""Evaluate a model on held-out cases: metrics.json, table.md, figures and one page to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from medvl.anatomy import FINDING_PARTS
from medvl.errors import DigestMismatch, UsageError, nearest
from medvl.evaluation.baseline import ridge_baseline
from medvl.evaluation.bootstrap import METHOD
from medvl.evaluation.cases import NOUNS, Cases, choose_cases
from medvl.evaluation.embedding import Embedded, embed_cases
from medvl.evaluation.grounding import THRESHOLDS
from medvl.evaluation.organs import ORGAN_ROWS, Scores, organ_pool, organ_section
from medvl.evaluation.page import Results, write_page
from medvl.evaluation.sections import Scored, grounding_section, retrieval_section, zero_shot_section
from medvl.evaluation.subject import Subject, find_subject
from medvl.evaluation.tables import cell, directions, markdown
from medvl.heads.grounding import SIGMA, phrase_vector
from medvl.heads.zeroshot import Prompts, ZeroShot, read_prompts
from medvl.notice import NOTICE
from medvl.progress import Progress
from medvl.specs import VolumeInput, VolumeSpec
from medvl.store import Store, write_atomic
from medvl.training.run import store_digest
from medvl.version import VERSION

__all__ = ["BASELINES", "FORMAT", "Evaluation", "evaluate"]

FORMAT = "medvl-evaluation-1"
BASELINES = ("ridge",)


@dataclass(frozen=True)
class Evaluation:
    """The figures of one evaluation.

    Attributes:
        metrics: what ``metrics.json`` holds; ``metrics["numbers"]`` maps a key such as
            ``retrieval/image_to_text/id/R@1/model`` to value, interval and n.
        table: the Markdown table.
        out: the folder with ``metrics.json``, ``table.md``, ``report.html`` and ``figures/``.
    """

    metrics: dict[str, Any]
    table: str
    out: Path

    @property
    def page(self) -> Path:
        """The page to look at."""
        return self.out / "report.html"

    def value(self, key: str) -> float:
        """Return one figure.

        Raises:
            UsageError: there is no such figure; the message names the nearest.
        """
        numbers = self.metrics["numbers"]
        if key not in numbers:
            near = nearest(key, numbers).rpartition(". ")[2]
            raise UsageError(f"there is no figure '{key}'.", hint=near if near.startswith("Did") else "")
        return float(numbers[key]["value"])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.metrics, "out": str(self.out)}

    def lines(self) -> list[str]:
        """Return the text of the command."""
        numbers = self.metrics["numbers"]
        lines = []
        for direction, name in directions(self.metrics).items():
            prefix = f"retrieval/{direction}/id"
            for k in (1, 5, 10):
                if f"{prefix}/R@{k}/model" in numbers:
                    beside = ", ".join(
                        f"{row} {numbers[f'{prefix}/R@{k}/{row}']['value']:.3f}"
                        for row in ("ridge", "chance", "ceiling")
                        if f"{prefix}/R@{k}/{row}" in numbers
                    )
                    lines.append(f"{name} R@{k:<3} {cell(numbers[f'{prefix}/R@{k}/model'])}  {beside}")
        for key, name in (
            ("zeroshot/macro/AUROC", "zero-shot AUROC"),
            ("grounding/all/pointing", "pointing game"),
        ):
            if f"{key}/model" in numbers:
                chance = numbers[f"{key}/chance"]["value"]
                lines.append(f"{name} {cell(numbers[f'{key}/model'])}  chance {chance:.3f}")
        for row in ORGAN_ROWS:
            if row != "chance" and f"organs/macro/AUROC/{row}" in numbers:
                number = cell(numbers[f"organs/macro/AUROC/{row}"])
                lines.append(f"AUROC from the finding's own part: {number}  {ORGAN_ROWS[row]}")
        return [*lines, f"page: {self.page}", f"tables: {self.out / 'table.md'}", NOTICE]


def evaluate(
    model: Path,
    data: Path,
    out: Path | None = None,
    *,
    split: str = "test",
    prompts: Path | None = None,
    uncertain: str = "exclude",
    baselines: Sequence[str] = BASELINES,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a run, a checkpoint or a bundle on a record store.

    The patients are split as the run split them, so no patient of its training is evaluated. Every
    recall stands beside chance, shuffled pairs, a label-only oracle and its ceiling; nothing is
    thresholded on these cases; what is left out is counted.

    Args:
        model: a run (its best checkpoint is taken), a checkpoint, a bundle or a model directory.
        data: a record store.
        out: where results go; default: ``RUN/evaluation``, or beside a bundle.
        split: ``test`` or ``val``.
        prompts: a prompts file; default: the one of the store's modality.
        uncertain: what becomes of uncertain labels, see
            :func:`medvl.evaluation.classification.truth_values`.
        baselines: ``ridge`` fits ridge regression between the same towers before training; it needs
            the recipe.
        resamples: of the patient bootstrap.
        seed: of every draw.
        progress: called as steps are done.

    Raises:
        DigestMismatch: the store was prepared by other specs than the model's.
        UsageError: nothing to evaluate, a split that training saw, an unknown baseline.
    """
    for baseline in baselines:
        if baseline not in BASELINES:
            raise UsageError(f"unknown baseline '{baseline}'.", hint=nearest(baseline, BASELINES))
    subject, store = find_subject(model), Store(data)
    _require_same_specs(subject, store)
    wording = read_prompts(prompts or _shipped_prompts(store.manifest.get("modality", "cxr")))
    cases = choose_cases(store, split=split, split_seed=subject.split_seed, view=subject.view)
    pool = organ_pool(subject.folder, subject.recipe)
    embedded = embed_cases(subject.loaded, store, cases, pool=pool, progress=progress)
    notes: dict[str, Any] = {}
    others: dict[str, Float[np.ndarray, "images texts"]] = {}
    if "ridge" in baselines:
        try:
            ridge, others["ridge"] = ridge_baseline(subject, store, cases, seed=seed, progress=progress)
            notes["ridge"] = {"alpha": ridge.alpha, "cross_validated_rank": ridge.rank}
        except UsageError as error:
            notes["ridge"] = f"left out: {error.message}"
    draws = {"resamples": resamples, "seed": seed}
    volumes = isinstance(subject.loaded.input, VolumeInput)
    retrieved = retrieval_section(cases, embedded, others=others, sideways=volumes, **draws)
    scored = _score_findings(subject, cases, embedded, wording, uncertain, draws)
    modality = str(store.manifest.get("modality", "cxr"))
    organs = _score_parts(subject, modality, cases, embedded, wording, uncertain, draws)
    boxed = sorted({box.label for record in cases.images for box in record.boxes})
    grounds = grounding_section(
        cases,
        embedded,
        {
            finding: phrase_vector(
                subject.loaded,
                wording.of(finding).positive,
                against=wording.of(finding).negative if volumes else (),
            )
            for finding in boxed
        },
        input=subject.loaded.input,
        progress=progress,
        **draws,
    )
    metrics = {
        "format": FORMAT,
        "notice": NOTICE,
        "medvl": VERSION,
        "model": _about_model(subject),
        "data": _about_data(store, cases, split, subject),
        "protocol": _protocol(subject, wording, scored) | notes | draws | {"uncertain_labels": uncertain},
        "left_out": cases.left_out
        | retrieved.left_out
        | scored.left_out
        | organs.left_out
        | grounds.left_out,
        "numbers": {
            f"{name}/{key}": number.plain()
            for name, section in (
                ("retrieval", retrieved),
                ("zeroshot", scored),
                ("organs", organs),
                ("grounding", grounds),
            )
            for key, number in section.numbers.items()
        },
    }
    out = Path(out) if out is not None else subject.results
    out.mkdir(parents=True, exist_ok=True)
    table = markdown(metrics)
    write_atomic(out / "metrics.json", (json.dumps(metrics, indent=1, allow_nan=False) + "\n").encode())
    write_atomic(out / "table.md", table.encode())
    results = Results(metrics, store, cases, embedded, retrieved, scored, grounds)
    write_page(out, results, progress=progress)
    return Evaluation(metrics, table, out)


def _score_findings(
    subject: Subject,
    cases: Cases,
    embedded: Embedded,
    wording: Prompts,
    uncertain: str,
    draws: dict[str, int],
) -> Scored:
    findings = sorted({name for record in cases.images for name in record.labels})
    if not findings:
        return Scored({}, {}, {"zero-shot findings: no record is labelled": len(cases.images)})
    scores = ZeroShot(subject.loaded, wording, findings).scores(embedded.images)
    return zero_shot_section(cases, scores, findings=findings, uncertain=uncertain, **draws)


def _score_parts(
    subject: Subject,
    modality: str,
    cases: Cases,
    embedded: Embedded,
    wording: Prompts,
    uncertain: str,
    draws: dict[str, int],
) -> Scores:
    """Score findings from the vectors of their parts, where volumes have a segmentation."""
    findings = sorted({name for record in cases.images for name in record.labels})
    pixels = subject.loaded.pixels
    if not embedded.parts or not findings or not isinstance(pixels, VolumeSpec):
        return Scores({}, {})
    # The numbers of the volumes, which may have fewer parts than the modality, or others.
    places = {part: number for number, part in enumerate(pixels.parts, start=1)}
    known = FINDING_PARTS.get(modality, {})
    numbers = [places.get(known.get(finding, ""), 0) for finding in findings]
    directions = {
        finding: (
            phrase_vector(subject.loaded, wording.of(finding).positive),
            phrase_vector(subject.loaded, wording.of(finding).negative),
        )
        for finding, number in zip(findings, numbers, strict=True)
        if number
    }
    whole = ZeroShot(subject.loaded, wording, findings).scores(embedded.images)
    return organ_section(
        cases,
        embedded.parts,
        whole,
        findings=findings,
        numbers=numbers,
        directions=directions,
        uncertain=uncertain,
        **draws,
    )


def _protocol(subject: Subject, wording: Prompts, scored: Scored) -> dict[str, Any]:
    local = subject.loaded.model.local
    noun = "volume" if isinstance(subject.loaded.input, VolumeInput) else "film"
    return {
        "interval": METHOD,
        "level": 0.95,
        "ties": "expected value over every order that ties allow; similarities within 1e-6 tie",
        "prompts": {"version": wording.version, "digest": wording.digest},
        "prompts_from_template": [name for name in scored.curves if name not in wording.findings],
        "grounding_phrase": "the finding's positive prompts, without side"
        + (", less its negative prompts" if noun == "volume" else ""),
        "grounding_space": "region projection" if local else f"projection of the whole {noun}",
        "heat_map_sigma_share_of_side": SIGMA,
        "iou_thresholds": list(THRESHOLDS),
        "ridge": None,
    }


def _require_same_specs(subject: Subject, store: Store) -> None:
    loaded = subject.loaded
    for record in store.records:
        loaded.pixels.require(record.pixel_digest)
        if record.report_digest != loaded.report.digest:
            raise DigestMismatch("report spec", got=record.report_digest, expected=loaded.report.digest)


def _shipped_prompts(modality: str) -> Path:
    return Path(str(resources.files(f"medvl.recipes.{modality}") / "prompts.yaml"))


def _about_model(subject: Subject) -> dict[str, Any]:
    config = subject.loaded.config
    return {
        "kind": subject.kind,
        "checkpoint": subject.checkpoint,
        "digest": subject.loaded.digest,
        "image_tower": config.image.name,
        "text_tower": config.text.name,
        "objective": subject.recipe.objective.name if subject.recipe else None,
        "dim": subject.loaded.model.dim,
        "local": subject.loaded.model.local,
    }


def _about_data(store: Store, cases: Cases, split: str, subject: Subject) -> dict[str, Any]:
    digest = store_digest(store)
    trained_on = subject.provenance.get("store")
    return {
        "store_digest": digest,
        "modality": store.manifest.get("modality"),
        "noun": NOUNS.get(str(store.manifest.get("modality")), "film"),
        "split": split,
        "split_seed": subject.split_seed,
        "trained_on_this_store": None if trained_on is None else trained_on == digest,
        "images": len(cases.images),
        "images_with_report": len(cases.with_text),
        "texts": len(cases.texts),
        "distinct_texts": len({text.sentences for text in cases.texts}),
        "studies": len({record.study_id for record in cases.images}),
        "patients": len({record.patient_id for record in cases.images}),
        "training_pairs": len(cases.train),
    }
