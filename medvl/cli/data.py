"""The commands that make and keep record stores."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvl.cli.basis import EXIT_SOME_FAILED, Verbs, key_bytes, progress, show, verb
from medvl.errors import UsageError


def add_prepare(verbs: Verbs, modality: str) -> None:
    """Add ``medvl MODALITY prepare``."""
    prepare = verb(verbs, "prepare", "studies and reports to a record store", _prepare)
    prepare.add_argument("source", type=Path, help="a tree of DICOM files or a folder of images")
    prepare.add_argument("out", type=Path, help="the store to write; a half-written one is resumed")
    prepare.add_argument(
        "--table", type=Path, help="report table (CSV, TSV, Parquet); default: found in SOURCE"
    )
    prepare.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="override a guessed column: study, study_uid, image, patient, text, view, split … (repeatable)",
    )
    prepare.add_argument("--labels", type=Path, help="label table; default: labels.* in SOURCE")
    prepare.add_argument("--boxes", type=Path, help="box table; default: boxes.* or *_boxes.csv in SOURCE")
    prepare.add_argument("--longest-px", type=int, default=512, help="longest side of a stored image (512)")
    prepare.add_argument(
        "--voi",
        choices=("header", "percentile"),
        default="header",
        help="grey scale: header's VOI or percentiles",
    )
    prepare.add_argument(
        "--split", type=float, nargs=3, default=(0.8, 0.1, 0.1), metavar=("TRAIN", "VAL", "TEST")
    )
    prepare.add_argument("--split-seed", type=int, default=0)
    prepare.add_argument("--key", type=Path, help="file with the pseudonym key; default: made in OUT/private")
    prepare.add_argument("--workers", type=int, help="processes; default: all cores")
    prepare.add_argument("--retry-failed", action="store_true", help="try items again that failed before")
    prepare.set_defaults(modality=modality)


def _prepare(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    columns = {}
    for item in arguments.column:
        role, equals, name = item.partition("=")
        if not (role and equals):
            raise UsageError(
                f"--column {item!r} is not ROLE=NAME.", hint="For example text=report; split= for none."
            )
        columns[role] = name
    with progress(arguments) as bar:
        summary = verbs.prepare(
            arguments.source,
            arguments.out,
            modality=arguments.modality,
            table=arguments.table,
            columns=columns,
            labels=arguments.labels,
            boxes=arguments.boxes,
            longest_px=arguments.longest_px,
            voi=arguments.voi,
            split=tuple(arguments.split),
            split_seed=arguments.split_seed,
            key=key_bytes(arguments.key),
            workers=arguments.workers,
            retry_failed=arguments.retry_failed,
            progress=bar,
        )
    show(arguments, summary)
    return 0 if summary.complete else EXIT_SOME_FAILED
