"""The commands that make record stores, keep them, and clean what goes into them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvl.cli.basis import EXIT_SOME_FAILED, Parser, Verbs, key_bytes, key_values, progress, show, verb
from medvl.notice import NOTICE

if TYPE_CHECKING:
    from medvl.store import Store


def add_prepare(verbs: Verbs, modality: str) -> None:
    """Add ``medvl MODALITY prepare``."""
    prepare = verb(verbs, "prepare", "studies and reports to a record store", _prepare)
    prepare.add_argument(
        "source", type=Path, help="a tree of DICOM files, a folder of images, or an archive of one"
    )
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
    prepare.add_argument(
        "--layout", default="auto", help="a public layout by name; auto looks for one, none does not (auto)"
    )
    prepare.add_argument(
        "--dry-run", action="store_true", help="only say what would be paired, what not, and why"
    )
    prepare.add_argument("--details", type=Path, help="with --dry-run: a CSV with one line a file and row")
    (_add_volumes if modality == "ct" else _add_films)(prepare)
    prepare.add_argument(
        "--keep-text", action="store_true", help="leave names, identifiers and dates in the reports"
    )
    prepare.add_argument(
        "--report",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="how reports are read: parser=de-1, abbreviations=expand, generation_priors=keep (repeatable)",
    )
    prepare.add_argument(
        "--split", type=float, nargs=3, default=(0.8, 0.1, 0.1), metavar=("TRAIN", "VAL", "TEST")
    )
    prepare.add_argument("--split-seed", type=int, default=0)
    prepare.add_argument("--key", type=Path, help="file with the pseudonym key; default: made in OUT/private")
    prepare.add_argument("--workers", type=int, help="processes; default: all cores")
    prepare.add_argument(
        "--scheduler", metavar="ADDRESS", help="address of a Dask scheduler whose workers do the work"
    )
    prepare.add_argument("--retry-failed", action="store_true", help="try items again that failed before")
    prepare.set_defaults(modality=modality)


def _add_films(prepare: argparse.ArgumentParser) -> None:
    prepare.add_argument("--longest-px", type=int, default=512, help="longest side of a stored image (512)")
    prepare.add_argument(
        "--voi",
        choices=("header", "percentile"),
        default="header",
        help="grey scale: header's VOI or percentiles",
    )
    prepare.add_argument(
        "--burned-in",
        choices=("off", "keep", "mask", "drop"),
        default="off",
        help="text in the pictures: do not look; look and record; paint over; leave the film out (off)",
    )


def _add_volumes(prepare: argparse.ArgumentParser) -> None:
    prepare.add_argument(
        "--spacing-mm",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="of the stored voxels to the right, front and top (1.5 1.5 3); 0 0 0 keeps the scan's own",
    )
    prepare.add_argument(
        "--crop", choices=("body", "none"), default="body", help="cut out the box of the body (body)"
    )
    prepare.add_argument(
        "--masks", type=Path, help="folder of organ masks (NIfTI), by series UID or file name; default: found"
    )
    prepare.add_argument(
        "--structures", type=Path, help="YAML from names in the masks to parts; default: TotalSegmentator's"
    )
    prepare.add_argument(
        "--frame",
        type=int,
        help="which volume of a NIfTI with four axes, from 0; default: such a file is refused",
    )
    prepare.add_argument("--allow-gaps", action="store_true", help="interpolate missing slices")
    prepare.add_argument(
        "--on-irregular",
        choices=("reject", "resample"),
        default="reject",
        help="tilted or unevenly spaced series: leave out, or interpolate (reject)",
    )


def _pixels(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the pixel spec and of what else depends on the modality."""
    if arguments.modality != "ct":
        return {
            "pixels": {"longest_px": arguments.longest_px, "voi": arguments.voi},
            "burned_in": arguments.burned_in,
        }
    given = arguments.spacing_mm
    spacing = {} if given is None else {"spacing_mm": tuple(given) if any(given) else None}
    return {
        "pixels": {"crop": arguments.crop, "frame": arguments.frame, **spacing},
        "masks": arguments.masks,
        "structures": arguments.structures,
        "allow_gaps": arguments.allow_gaps,
        "on_irregular": arguments.on_irregular,
    }


def add_deid(top: Verbs) -> None:
    """Add ``medvl deid``."""
    deid = verb(top, "deid", "clean copies of DICOM files and reports, flags set, audited", _deid)
    deid.add_argument("source", type=Path, help="a tree of DICOM files with tables and texts")
    deid.add_argument("out", type=Path, help="the clean copies; an interrupted run is resumed")
    deid.add_argument(
        "--pixels",
        choices=("mask", "drop", "keep", "off"),
        default="mask",
        help="text in the pictures: paint over; leave the file out; only say so; do not look (mask)",
    )
    deid.add_argument("--key", type=Path, help="file with the pseudonym key; default: made in OUT/private")
    deid.add_argument("--workers", type=int, help="processes; default: all cores")


def add_data(top: Verbs) -> None:
    """Add ``medvl data`` and its verbs."""
    parser = top.add_parser(
        "data", help="record stores: check, select, append, reduce, export", epilog=NOTICE
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)

    check = verb(verbs, "check", "leaks, duplicates and conflicts, with the names of the records", _check)
    check.add_argument("store", type=Path)
    check.add_argument("--deep", action="store_true", help="also read and decode every payload")
    check.add_argument("--details", type=Path, help="write every finding to this CSV file")

    select = verb(verbs, "select", "a smaller store of the chosen records", _select)
    select.add_argument("store", type=Path)
    select.add_argument("out", type=Path)
    select.add_argument("where", help="a pandas expression: \"view == 'PA' and split == 'train'\"")

    append = verb(verbs, "append", "add the records of a second store made with the same key", _append)
    append.add_argument("store", type=Path, help="the store that grows")
    append.add_argument("more", type=Path, help="the store whose records are added")

    reduce = verb(verbs, "reduce", "leave near-duplicates out; no report loses its evidence", _reduce)
    reduce.add_argument("store", type=Path)
    reduce.add_argument("out", type=Path, nargs="?", help="the smaller store; without it, only look")
    reduce.add_argument("--distance", type=int, default=6, help="bits of 64 that count as similar (6)")
    reduce.add_argument("--within", choices=("patient", "store"), default="patient")
    reduce.add_argument(
        "--slices",
        action="store_true",
        help="of volumes: keep the slices that tell something new; OUT holds volumes of one slice",
    )
    reduce.add_argument(
        "--method",
        choices=("hash", "information"),
        default="hash",
        help="how a slice is told from its neighbours (hash)",
    )
    reduce.add_argument("--threshold", type=float, help="of the method; default: its own")
    reduce.add_argument("--details", type=Path, help="write what goes and what stays to this CSV file")

    export = verb(
        verbs, "export", "for other tools: Hugging Face datasets, or pictures with a table", _export
    )
    export.add_argument("store", type=Path)
    export.add_argument("out", type=Path)
    export.add_argument("--to", choices=("datasets", "folder"), default="datasets")

    rewrite = verb(verbs, "rewrite", "reports in other words by a local model, facts checked", _rewrite)
    rewrite.add_argument("store", type=Path)
    rewrite.add_argument("model", type=Path, help="folder of a causal language model (save_pretrained)")
    rewrite.add_argument("--prompt", type=Path, help="text file with {sentence} once; default: built in")

    audit = verb(verbs, "audit", "search a store for every identifying value of its source", _audit)
    audit.add_argument("store", type=Path)
    audit.add_argument("source", type=Path, help="the originals that the store was prepared from")
    audit.add_argument("--read-pictures", action="store_true", help="also read text in the stored pictures")


def _pairs(items: Sequence[str], option: str, example: str) -> dict[str, str]:
    return key_values(items, wrong=f"{option} {{}} is not KEY=VALUE.", hint=f"For example {example}.")


def _prepare(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    given = {
        "layout": arguments.layout,
        "table": arguments.table,
        "columns": _pairs(arguments.column, "--column", "text=report; split= for none"),
        "labels": arguments.labels,
        "boxes": arguments.boxes,
    }
    if arguments.dry_run:
        from medvl.preprocess.assembly import REFUSED
        from medvl.preprocess.pipeline import Tables, preview
        from medvl.preprocess.pseudonyms import write_pairing
        from medvl.preprocess.sources.pairing import ROW_HEADER

        chosen = _pixels(arguments)
        paired = preview(
            arguments.source,
            arguments.out,
            modality=arguments.modality,
            tables=Tables(**given),
            masks=chosen.get("masks"),
            structures=chosen.get("structures"),
        )
        show(arguments, paired)
        if arguments.details:
            write_pairing(arguments.details, [ROW_HEADER, *paired.rows()])
        wrong = REFUSED.intersection(entry.reason for entry in paired.unpaired)
        return EXIT_SOME_FAILED if wrong or not paired.items else 0
    with progress(arguments) as bar:
        summary = verbs.prepare(
            arguments.source,
            arguments.out,
            modality=arguments.modality,
            report=_pairs(arguments.report, "--report", "parser=de-1"),
            clean_text=not arguments.keep_text,
            split=tuple(arguments.split),
            split_seed=arguments.split_seed,
            key=key_bytes(arguments.key),
            workers=arguments.workers,
            scheduler=arguments.scheduler,
            retry_failed=arguments.retry_failed,
            progress=bar,
            **_pixels(arguments),
            **given,
        )
    show(arguments, summary)
    return 0 if summary.complete else EXIT_SOME_FAILED


def _deid(arguments: argparse.Namespace) -> int:
    from medvl.preprocess.deid.run import deidentify

    with progress(arguments) as bar:
        summary = deidentify(
            arguments.source,
            arguments.out,
            key=key_bytes(arguments.key),
            pixels=arguments.pixels,
            workers=arguments.workers,
            progress=bar,
        )
    show(arguments, summary)
    return 0 if summary.complete else EXIT_SOME_FAILED


def _check(arguments: argparse.Namespace) -> int:
    from medvl.preprocess.checks import check_store
    from medvl.store import Store

    with progress(arguments) as bar:
        found = check_store(
            Store(arguments.store),
            deep=arguments.deep,
            **({"shown": None} if arguments.details else {}),
            progress=bar,
        )
    if arguments.details:
        arguments.details.write_text(found.table(), "utf-8")
    show(arguments, found)
    return EXIT_SOME_FAILED if found.worst == "problem" else 0


def _select(arguments: argparse.Namespace) -> int:
    from medvl.preprocess.curation import select
    from medvl.store import Store

    with progress(arguments) as bar:
        show(arguments, select(Store(arguments.store), arguments.where, arguments.out, progress=bar))
    return 0


def _append(arguments: argparse.Namespace) -> int:
    from medvl.preprocess.curation import append

    with progress(arguments) as bar:
        show(arguments, append(arguments.store, arguments.more, progress=bar))
    return 0


def _reduce(arguments: argparse.Namespace) -> int:
    from medvl.preprocess.curation import select
    from medvl.preprocess.reduction import reduce_pairs
    from medvl.store import Store

    store = Store(arguments.store)
    if arguments.slices:
        return _reduce_slices(arguments, store)
    with progress(arguments) as bar:
        reduction = reduce_pairs(store, distance=arguments.distance, within=arguments.within, progress=bar)
        if arguments.out:
            select(store, reduction.kept, arguments.out, progress=bar)
    if arguments.details:
        arguments.details.write_text(reduction.table(), "utf-8")
    show(arguments, reduction)
    return 0


def _reduce_slices(arguments: argparse.Namespace, store: Store) -> int:
    from medvl.preprocess.reduction_slices import reduce_store_slices
    from medvl.preprocess.reduction_store import write_slices

    with progress(arguments) as bar:
        reduction = reduce_store_slices(
            store, method=arguments.method, threshold=arguments.threshold, progress=bar
        )
        if arguments.out:
            write_slices(store, reduction, arguments.out, progress=bar)
    if arguments.details:
        arguments.details.write_text(reduction.table(), "utf-8")
    show(arguments, reduction)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from medvl.preprocess.export import export_datasets, export_folder
    from medvl.store import Store

    run = export_datasets if arguments.to == "datasets" else export_folder
    with progress(arguments) as bar:
        show(arguments, run(Store(arguments.store), arguments.out, progress=bar))
    return 0


def _rewrite(arguments: argparse.Namespace) -> int:
    from medvl.encoders.generator import load_generator
    from medvl.preprocess.reports.rewrite import PROMPT
    from medvl.preprocess.rewriting import rewrite_store

    prompt = arguments.prompt.read_text("utf-8") if arguments.prompt else PROMPT
    with progress(arguments) as bar:
        summary = rewrite_store(arguments.store, load_generator(arguments.model), prompt=prompt, progress=bar)
    show(arguments, summary)
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    from medvl.preprocess.deid.audit import audit
    from medvl.preprocess.deid.carriers import collect_carriers
    from medvl.store import Store

    found = audit(
        collect_carriers(arguments.source),
        Store(arguments.store).path,
        pixels="read" if arguments.read_pictures else "off",
    )
    show(arguments, found)
    return 0 if found.clean else EXIT_SOME_FAILED
