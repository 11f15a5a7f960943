"""The figures as Markdown tables, and the rows that tables and page share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medvl.evaluation.organs import ORGAN_ROWS
from medvl.notice import NOTICE

__all__ = [
    "DIRECTIONS",
    "MODE_NAMES",
    "ROW_NAMES",
    "SIDEWAYS",
    "cell",
    "directions",
    "grounding_rows",
    "is_rank",
    "markdown",
    "organ_rows",
    "retrieval_rows",
    "zero_shot_rows",
]

DIRECTIONS = {"image_to_text": "film → report", "text_to_image": "report → film"}
SIDEWAYS = "image_to_image"
"""Images that find other images; volumes have it."""
MODE_NAMES = {
    "id": "the same study",
    "text": "an equal report",
    "label": "an equal set of findings",
}
ROW_NAMES = {
    "model": "model",
    "normalised": "model ÷ ceiling",
    "ridge": "ridge, same towers frozen",
    "labels": "oracle of findings only",
    "shuffled": "shuffled pairs",
    "chance": "chance",
    "ceiling": "ceiling",
}
_RETRIEVAL = ("R@1", "R@5", "R@10", "MedR", "MeanR", "mAP", "P@5", "P@10", "P@50")


def directions(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the directions of retrieval that were measured, in words that fit the modality."""
    noun = metrics["data"].get("noun", "film")
    named = {key: text.replace("film", noun) for key, text in DIRECTIONS.items()}
    if any(key.startswith(f"retrieval/{SIDEWAYS}/") for key in metrics["numbers"]):
        named[SIDEWAYS] = f"{noun} → {noun}"
    return named


def is_rank(metric: str) -> bool:
    """Say whether a metric is a rank, which is smaller when better and has one decimal."""
    return metric in ("MedR", "MeanR")


def cell(number: Mapping[str, Any] | None, *, digits: int = 3) -> str:
    """Return a figure with its interval.

    Examples:
        >>> cell({"value": 0.25, "low": 0.2, "high": 0.31, "n": 9})
        '0.250 (0.200–0.310)'
        >>> cell(None)
        ''
    """
    if number is None:
        return ""
    text = f"{number['value']:.{digits}f}"
    if number.get("low") is not None:
        text += f" ({number['low']:.{digits}f}–{number['high']:.{digits}f})"
    return text


def retrieval_rows(
    numbers: Mapping[str, Any], direction: str, mode: str
) -> tuple[list[str], list[tuple[str, list[Mapping[str, Any] | None]]]]:
    """Return the columns of one retrieval table and its rows by name; none where there are no figures."""
    prefix = f"retrieval/{direction}/{mode}"
    columns = [metric for metric in _RETRIEVAL if f"{prefix}/{metric}/model" in numbers]
    rows = [
        (row, [numbers.get(f"{prefix}/{metric}/{row}") for metric in columns])
        for row in ROW_NAMES
        if columns and f"{prefix}/R@1/{row}" in numbers
    ]
    return columns, rows


def markdown(metrics: Mapping[str, Any]) -> str:
    """Return every table of an evaluation as Markdown."""
    numbers, data, protocol = metrics["numbers"], metrics["data"], metrics["protocol"]
    lines = [
        "# Evaluation",
        "",
        f"**{NOTICE}**",
        "",
        f"{data['images']} {data.get('noun', 'film')}s and {data['texts']} reports "
        f"({data['distinct_texts']} different) of {data['patients']} patients, split `{data['split']}`. "
        f"In brackets the 95 % {protocol['interval']} ({protocol['resamples']} resamples, "
        f"seed {protocol['seed']}; of shuffled pairs, 95 % of the deals).",
        "",
    ]
    named = directions(metrics)
    for direction, title in named.items():
        for mode, right in MODE_NAMES.items():
            columns, rows = retrieval_rows(numbers, direction, mode)
            if not columns:
                continue
            n = numbers[f"retrieval/{direction}/{mode}/R@1/model"]["n"]
            gallery = data["texts"] if direction == "image_to_text" else data["images_with_report"]
            lines += [f"## Retrieval, {title}; right is {right} ({n} queries, gallery of {gallery})", ""]
            lines += _table(
                ["", *columns],
                [[ROW_NAMES[row], *_cells(columns, values)] for row, values in rows],
            )
    lines += _galleries(numbers, named) + _zero_shot(numbers, protocol) + _organs(numbers)
    lines += _grounding(numbers, protocol, noun=data.get("noun", "film"))
    if metrics["left_out"]:
        lines += ["## Left out", ""]
        lines += [f"- {why}: {count}" for why, count in metrics["left_out"].items()]
        lines.append("")
    return "\n".join(lines)


def _cells(columns: Sequence[str], values: Sequence[Mapping[str, Any] | None]) -> list[str]:
    return [cell(v, digits=1 if is_rank(c) else 3) for c, v in zip(columns, values, strict=True)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _galleries(numbers: Mapping[str, Any], named: Mapping[str, str]) -> list[str]:
    rows = []
    for direction, title in named.items():
        for size in (100, 1000):
            values = [numbers.get(f"retrieval/{direction}/id/R@{k}/gallery-{size}") for k in (1, 5, 10)]
            if values[0] is not None:
                rows.append([title, str(size), *(cell(value) for value in values)])
    if not rows:
        return []
    head = [
        "## Retrieval in fixed random galleries; right is the same study (mean and 95 % of 100 draws)",
        "",
    ]
    return head + _table(["", "studies", "R@1", "R@5", "R@10"], rows)


def zero_shot_rows(numbers: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row a finding, the mean last: name, whether its prompts are the template's, and figures."""
    return [
        {
            "finding": finding,
            "templated": finding in protocol["prompts_from_template"],
            "n": numbers[f"zeroshot/{finding}/AUROC/model"]["n"],
            **{
                f"{metric}_{row}": numbers.get(f"zeroshot/{finding}/{metric}/{row}")
                for metric in ("AUROC", "AP")
                for row in ("model", "shuffled", "chance")
            },
        }
        for finding in _findings(numbers, "zeroshot", "AUROC", last="macro")
    ]


def grounding_rows(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row a finding, all of them together last."""
    return [
        {
            "finding": finding,
            "n": numbers[f"grounding/{finding}/pointing/model"]["n"],
            **{
                row: numbers.get(f"grounding/{finding}/pointing/{row}")
                for row in ("model", "shuffled", "chance")
            },
            "signed": numbers.get(f"grounding/{finding}/CNR/model"),
            "absolute": numbers.get(f"grounding/{finding}/|CNR|/model"),
            "iou": numbers.get(f"grounding/{finding}/mIoU/model"),
        }
        for finding in _findings(numbers, "grounding", "pointing", last="all")
    ]


def _findings(numbers: Mapping[str, Any], section: str, metric: str, *, last: str) -> list[str]:
    ending = f"/{metric}/model"
    names = [key.split("/")[1] for key in numbers if key.startswith(f"{section}/") and key.endswith(ending)]
    return sorted(names, key=lambda name: (name == last, name))


def _zero_shot(numbers: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    rows = zero_shot_rows(numbers, protocol)
    if not rows:
        return []
    values = ("AUROC_model", "AUROC_shuffled", "AUROC_chance", "AP_model", "AP_chance")
    body = [
        [
            row["finding"].replace("_", " ") + (" *" if row["templated"] else ""),
            str(row["n"]),
            *(cell(row[value]) for value in values),
        ]
        for row in rows
    ]
    prompts = protocol["prompts"]
    note = f"Prompts `{prompts['version']}` ({prompts['digest']}). "
    note += f"Uncertain labels: {protocol['uncertain_labels']}."
    if protocol["prompts_from_template"]:
        note += " \\* by the template, for want of prompts of its own."
    head = ["", "n", "AUROC", "shuffled", "chance", "average precision", "prevalence"]
    return ["## Zero-shot findings", "", note, "", *_table(head, body)]


def organ_rows(numbers: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the kinds of vector that findings were scored from, and one row a finding, the mean last."""
    columns = [row for row in ORGAN_ROWS if any(key.endswith(f"/AUROC/{row}") and key.startswith("organs/")
               for key in numbers)]  # fmt: skip
    ending = "/AUROC/regions"
    names = [key.split("/")[1] for key in numbers if key.startswith("organs/") and key.endswith(ending)]
    rows = [
        {
            "finding": finding,
            "n": numbers[f"organs/{finding}{ending}"]["n"],
            "cells": [cell(numbers.get(f"organs/{finding}/AUROC/{column}")) for column in columns],
        }
        for finding in sorted(names, key=lambda name: (name == "macro", name))
    ]
    return columns, rows


def _organs(numbers: Mapping[str, Any]) -> list[str]:
    columns, rows = organ_rows(numbers)
    if not rows:
        return []
    note = "AUROC of prompts for a finding against prompts against it, compared with one vector of a volume: "
    note += "; ".join(f"`{column}` {ORGAN_ROWS[column]}" for column in columns) + "."
    body = [[row["finding"].replace("_", " "), str(row["n"]), *row["cells"]] for row in rows]
    return ["## Findings from their own part of the body", "", note, "", *_table(["", "n", *columns], body)]


def _grounding(numbers: Mapping[str, Any], protocol: Mapping[str, Any], *, noun: str) -> list[str]:
    rows = grounding_rows(numbers)
    if not rows:
        return []
    values = ("model", "shuffled", "chance", "signed", "absolute", "iou")
    body = [
        [row["finding"].replace("_", " "), str(row["n"]), *(cell(row[value]) for value in values)]
        for row in rows
    ]
    note = f"Phrase: {protocol['grounding_phrase']}. Regions through the {protocol['grounding_space']}."
    head = [
        "",
        "n",
        "pointing game",
        f"maps dealt to other {noun}s",
        "chance",
        "CNR (signed)",
        "CNR (absolute)",
        "mIoU",
    ]
    return ["## Grounding", "", note, "", *_table(head, body)]
