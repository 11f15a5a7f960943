"""The quality page: what a person must see of a store before believing anything made from it."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image as Pillow

from medvl.notice import NOTICE
from medvl.preprocess.checks import Check, check_records
from medvl.preprocess.chunks import Failure
from medvl.preprocess.quality_volumes import group_of, outlined_planes, volume_facts
from medvl.records import IS_PRESENT, Record, Report
from medvl.specs import PixelSpec, ReportSpec, Spec, VolumeSpec, fold
from medvl.splits import SPLITS
from medvl.store import read_pixels

__all__ = ["render_quality", "store_page"]

View = Literal["retrieval", "generation"]

_PICTURE_PX = 320
_PICTURES_PER_VIEW = 4
_TEXT_SHOWN = 700
_ROWS_SHOWN = 12


def render_quality(
    records: Sequence[Record],
    *,
    failures: Sequence[Failure],
    counts: Mapping[str, Any],
    columns: Mapping[str, str],
    notes: Sequence[str],
    kinds: Mapping[str, int],
    checks: Sequence[Check],
    pixels: PixelSpec | VolumeSpec,
    report: ReportSpec,
    shards: Path,
) -> str:
    """Return one self-contained HTML page; every text in it is escaped.

    Args:
        records: all records of the store.
        failures: the items that gave none.
        counts: the counts of the manifest.
        columns: role to the column that was taken for it.
        notes: what the pairing wants to be known.
        kinds: file format or transfer syntax to number of files.
        checks: leaks, duplicates, conflicts.
        pixels: the spec that made the stored arrays.
        report: the spec that made the text views.
        shards: the folder of shards, for the sample pictures.
    """
    volumes = isinstance(pixels, VolumeSpec)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("quality.html").render(
        notice=NOTICE,
        counts=counts,
        columns=columns,
        notes=notes,
        checks=sorted(checks, key=lambda check: ("problem", "note", "ok").index(check.level)),
        worst=_worst(checks),
        failures=_failures(failures),
        kinds=_bars(kinds),
        pictures=None if volumes else _pictures(records),
        volumes=volume_facts(records, failures, pixels, bars=_bars, histogram=_histogram)
        if isinstance(pixels, VolumeSpec)
        else None,
        text=_text(records, report),
        labels=_labels(records),
        agreement=_agreement(records),
        removed=_bars(sum((Counter(record.redactions) for record in records), Counter())),
        burned=_burned(records),
        samples=_samples(records, shards, volumes=volumes),
        specs=[_spec(pixels.what, pixels), _spec(report.what, report)],
    )


def store_page(records: Sequence[Record], manifest: Mapping[str, Any], path: Path) -> str:
    """Return the page of a store that exists, from its records, its manifest and its failures."""
    failures = path / "failures.jsonl"
    lines = failures.read_text("utf-8").splitlines() if failures.is_file() else []
    values = manifest["specs"]["pixels"]
    told = [f"made from another store: {key}" for key in ("appended", "selected_from") if key in manifest]
    return render_quality(
        records,
        failures=[Failure(**json.loads(line)) for line in lines],
        counts=manifest["counts"],
        columns=manifest.get("columns", {}),
        notes=told,
        kinds=Counter(record.source_kind for record in records),
        checks=check_records(records),
        pixels=(VolumeSpec if values.get("kind") == "volume" else PixelSpec).from_json(values),
        report=ReportSpec.from_json(manifest["specs"]["report"]),
        shards=path / "shards",
    )


def _worst(checks: Sequence[Check]) -> str:
    levels = {check.level for check in checks}
    return next(level for level in ("problem", "note", "ok") if level in levels or level == "ok")


def _bars(
    counts: Mapping[Any, int], *, of: int | None = None, most: int = _ROWS_SHOWN
) -> list[dict[str, Any]]:
    """Return the most frequent values with their share in percent, the rest as one row."""
    whole = of or sum(counts.values()) or 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    rows = [{"name": str(name), "count": n, "share": 100 * n / whole} for name, n in ranked[:most]]
    rest = sum(n for _, n in ranked[most:])
    if rest and of is None:
        rows.append({"name": f"{len(ranked) - most} others", "count": rest, "share": 100 * rest / whole})
    return rows


def _histogram(values: Sequence[float], *, bins: int = 24) -> dict[str, Any] | None:
    """Return bar heights in percent of the tallest, with the quartiles."""
    if not values:
        return None
    numbers = np.asarray(values, float)
    low, high = numbers.min(), numbers.max()
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # too near each other for so many bins
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(numbers, bins=bins, range=(low, high))
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {
        "bars": [
            {"height": 100 * int(n) / int(counts.max()), "count": int(n), "low": float(a), "high": float(b)}
            for n, a, b in zip(counts, edges[:-1], edges[1:], strict=True)
        ],
        "min": float(min(values)),
        "max": float(max(values)),
        "quartiles": (float(low), float(middle), float(high)),
    }


def _failures(failures: Sequence[Failure]) -> list[dict[str, Any]]:
    by_rule: dict[str, list[Failure]] = defaultdict(list)
    for failure in failures:
        by_rule[failure.rule].append(failure)
    return [
        {
            "rule": rule,
            "count": len(group),
            "message": group[0].message,
            "tokens": [f.token for f in group[:6]],
        }
        for rule, group in sorted(by_rule.items(), key=lambda item: -len(item[1]))
    ]


def _pictures(records: Sequence[Record]) -> dict[str, Any]:
    def size(shape: tuple[int, ...]) -> str:
        return " × ".join(map(str, shape[::-1]))

    def count(values: Iterable[str], most: int = _ROWS_SHOWN) -> list[dict[str, Any]]:
        return _bars(Counter(values), most=most)

    return {
        "tables": [
            ("View", count(record.view or "not stated" for record in records)),
            ("Side", count(record.laterality or "not stated" for record in records)),
            ("Grey scale", count(_polarity(record) for record in records)),
            ("Geometry", count(record.geometry for record in records)),
            ("Spacing measured at", count(_frame(record) for record in records)),
            ("Source columns × rows", count((size(record.source_shape) for record in records), 8)),
            ("Stored columns × rows", count((size(record.shape) for record in records), 8)),
        ],
        "spacing": _histogram([record.spacing_mm[0] for record in records if record.spacing_mm]),
        "notes": _bars(Counter(note for record in records for note in record.notes)),
    }


def _polarity(record: Record) -> str:
    return "MONOCHROME1, inverted once" if record.inverted else "as stored, white is dense"


def _frame(record: Record) -> str:
    return record.spacing_frame or "unknown plane" if record.spacing_mm else "not stated"


def _text(records: Sequence[Record], spec: ReportSpec) -> dict[str, Any]:
    written = {record.text_hash: record for record in records if record.text_hash}
    studies: dict[str, set[str]] = defaultdict(set)
    patients: dict[str, set[str]] = defaultdict(set)
    for record in records:
        studies[record.text_hash].add(record.study_id)
        patients[record.text_hash].add(record.patient_id)
    repeats = {key: len(studies[key]) for key in written if len(studies[key]) > 1}
    return {
        "written": sum(bool(record.text_hash) for record in records),
        "different": len(written),
        "sections": _bars(
            Counter(name for r in written.values() for name in {s.name for s in r.sections}),
            of=len(written) or 1,
        ),
        "views": [_view(written.values(), spec, view) for view in ("retrieval", "generation")],
        "words": _histogram([float(len(record.report.split())) for record in written.values()]),
        "repeated": [
            {"text": _short(written[key].report), "studies": n, "patients": len(patients[key])}
            for key, n in sorted(repeats.items(), key=lambda item: (-item[1], item[0]))[:5]
        ],
    }


def _view(records: Iterable[Record], spec: ReportSpec, view: View) -> dict[str, Any]:
    kept = 0
    dropped: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    for record in records:
        report = Report(record.report, record.sections, record.sentences)
        for sentence in record.sentences:
            reason = spec.reason(sentence, view)
            if reason is None:
                kept += 1
                continue
            dropped[reason] += 1
            words = _short(report.sentence_text(sentence), most=160)
            if len(examples[reason]) < 3 and words not in examples[reason]:
                examples[reason].append(words)
    rows = [
        row | {"examples": examples[row["name"]]} for row in _bars(dropped, of=kept + dropped.total() or 1)
    ]
    return {"name": view, "kept": kept, "dropped": dropped.total(), "reasons": rows}


def _labels(records: Sequence[Record]) -> list[dict[str, Any]]:
    total = Counter(record.split for record in records)
    cells: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for record in records:
        for finding, state in record.labels.items():
            cells[finding][record.split][state] += 1
    table = []
    for finding, by_split in cells.items():
        states = sum(by_split.values(), Counter())
        row = {
            "name": finding,
            **{state: states[state] for state in ("present", "unchanged", "absent", "uncertain")},
            "unknown": len(records) - states.total(),
            "share": 100 * (states["present"] + states["unchanged"]) / len(records),
            "splits": [
                {"name": name, "present": by_split[name]["present"], "of": total[name]} for name in SPLITS
            ],
        }
        table.append(row)
    return sorted(table, key=lambda row: (-row["present"], row["name"]))


def _agreement(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Compare, finding by finding, the labels that were given with what the reports say."""
    cells: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for finding in record.said:
            given, said = record.labels.get(finding), record.said[finding]
            if given is None:
                cells[finding]["said alone"] += 1
            else:
                cells[finding]["agree" if IS_PRESENT.get(given) == IS_PRESENT.get(said) else "differ"] += 1
    kinds = ("agree", "differ", "said alone")
    rows = [{"name": finding, **{kind: counts[kind] for kind in kinds}} for finding, counts in cells.items()]
    return sorted(rows, key=lambda row: (-int(row["differ"]), str(row["name"])))


def _burned(records: Sequence[Record]) -> dict[str, int] | None:
    """Count the films with text in the picture; None when nobody looked."""
    seen = [record for record in records if record.text_fraction is not None]
    if not seen:
        return None
    return {
        "films looked at": len(seen),
        "with text": sum(any(r.kind == "text" for r in record.text_regions) for record in seen),
        "with text painted over": sum(any(r.masked for r in record.text_regions) for record in seen),
        "with a side marker": sum(any(r.kind == "marker" for r in record.text_regions) for record in seen),
    }


def _samples(records: Sequence[Record], shards: Path, *, volumes: bool) -> list[dict[str, Any]]:
    by_view: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_view[group_of(record) if volumes else record.view or "view not stated"].append(record)
    groups = []
    for view, group in sorted(by_view.items(), key=lambda item: (-len(item[1]), item[0]))[:6]:
        # Records with something to see first; ids are random, so their order is a fair draw.
        best = sorted(group, key=lambda r: (not r.boxes, not r.report, r.record_id))
        shown = best[:_PICTURES_PER_VIEW]
        cards = [
            _card(record, outlined_planes(record, shards) if volumes else _film(record, shards))
            for record in shown
        ]
        groups.append({"view": view, "count": len(group), "cards": cards})
    return groups


def _film(record: Record, shards: Path) -> dict[str, Any]:
    stored = read_pixels(shards, record)
    picture = Pillow.fromarray(stored)
    picture.thumbnail((_PICTURE_PX, _PICTURE_PX), Pillow.Resampling.BILINEAR, reducing_gap=2.0)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    height, width = stored.shape[:2]
    return {
        "src": "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode(),
        "width": width,
        "height": height,
        "boxes": [
            {
                "label": box.label,
                "x": box.x0,
                "y": box.y0,
                "width": box.x1 - box.x0,
                "height": box.y1 - box.y0,
            }
            for box in record.boxes
        ],
    }


def _card(record: Record, picture: dict[str, Any]) -> dict[str, Any]:
    return picture | {
        "id": record.record_id,
        "split": record.split,
        "regions": [
            {"kind": r.kind, "x": r.x0, "y": r.y0, "width": r.x1 - r.x0, "height": r.y1 - r.y0}
            for r in record.text_regions
        ],
        "present": sorted(finding for finding, state in record.labels.items() if IS_PRESENT.get(state)),
        "text": _short(" ".join(record.retrieval), most=_TEXT_SHOWN),
        "generation": _short(" ".join(record.generation), most=_TEXT_SHOWN),
    }


def _short(text: str, *, most: int = _TEXT_SHOWN) -> str:
    words = fold(text)
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def _spec(name: str, spec: Spec) -> dict[str, str]:
    values = json.dumps(spec.model_dump(mode="json"), indent=2, ensure_ascii=False)
    return {"name": name, "digest": spec.digest, "json": values}
