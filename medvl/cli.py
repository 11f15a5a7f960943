"""The ``medvl`` command: arguments to verbs; nothing heavy is imported before a verb runs.

Exit status: 0 done; 2 the call or a configuration is wrong; 3 done, but some items failed and are
listed; 4 a file is refused; 130 or 143 interrupted (run the same command again: it resumes).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from medvl.errors import MedvlError, UsageError, file_token, nearest
from medvl.notice import NOTICE
from medvl.version import VERSION

EXIT_SOME_FAILED = 3


class _Parser(argparse.ArgumentParser):
    """A parser whose errors name the nearest valid value."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}.", hint=f"See '{self.prog} --help'.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.dest if action.dest != "verb" else "command"
            raise UsageError(f"unknown {name} '{value}'.", hint=nearest(str(value), map(str, action.choices)))


def _verb(
    group: argparse._SubParsersAction[_Parser], name: str, help_text: str, run: Callable[..., Any]
) -> _Parser:
    parser = group.add_parser(
        name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.", epilog=NOTICE
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _modality_verbs(group: argparse._SubParsersAction[_Parser], modality: str, words: str) -> None:
    parser = group.add_parser(modality, help=f"{words}: prepare, train, demo", epilog=NOTICE)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    prepare = _verb(verbs, "prepare", "studies and reports to a record store", _prepare)
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

    train = _verb(verbs, "train", "train a model on a record store", _train)
    train.add_argument("data", type=Path, nargs="?", help="the record store")
    train.add_argument("out", type=Path, nargs="?", help="the run to write; an interrupted one is resumed")
    train.add_argument("--recipe", default="multi", help="a recipe's name or a YAML file (multi)")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override any value: schedule.epochs=50 (repeatable)",
    )
    train.add_argument("--print-recipe", action="store_true", help="show the resolved recipe and stop")
    train.set_defaults(modality=modality)

    demo = _verb(verbs, "demo", "the whole road on phantoms, ends with an HTML page", _demo)
    demo.add_argument("out", type=Path, nargs="?", default=Path("medvl-demo"))
    demo.add_argument("--n", type=int, help="phantom studies")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(modality=modality)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = _Parser(
        prog="medvl",
        description="From studies and reports to a vision-language model of your own.",
        epilog=f"{NOTICE} Exit status: 0 done, 2 wrong call, 3 some items failed, 4 file refused, "
        "130 or 143 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"medvl {VERSION}")
    top = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=_Parser)

    _modality_verbs(top, "cxr", "chest X-ray")

    evaluate = _verb(top, "evaluate", "retrieval, zero-shot and grounding: table, figures, JSON", _evaluate)
    evaluate.add_argument("model", type=Path, help="a run or a bundle")
    evaluate.add_argument("data", type=Path, help="a record store")
    evaluate.add_argument(
        "--out", type=Path, help="folder of the results; default: RUN/evaluation, or beside a bundle"
    )
    evaluate.add_argument("--split", choices=("val", "test"), default="test")
    evaluate.add_argument("--prompts", type=Path, help="YAML file of prompts; default: the modality's own")
    evaluate.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples (2000)")
    evaluate.add_argument("--seed", type=int, default=0)

    export = _verb(top, "export", "run to bundle: weights, specs, ONNX, model card", _export)
    export.add_argument("run_dir", type=Path, metavar="RUN")
    export.add_argument("bundle", type=Path)
    export.add_argument("--no-onnx", action="store_true", help="leave the ONNX files out")

    index = _verb(top, "index", "embed a store and index it", _index)
    index.add_argument("bundle", type=Path, nargs="?", help="a bundle or a run")
    index.add_argument("data", type=Path, nargs="?", help="a record store")
    index.add_argument("index", type=Path, help="the index to write, or to add to")
    index.add_argument(
        "--delete-patient",
        action="append",
        default=[],
        metavar="ID",
        help="erase a patient for good (repeatable)",
    )
    index.add_argument(
        "--delete-record",
        action="append",
        default=[],
        metavar="ID",
        help="erase a record for good (repeatable)",
    )

    search = _verb(top, "search", "search an index by text, by image, or both", _search)
    search.add_argument("index", type=Path)
    search.add_argument("--text", help="a sentence or a report")
    search.add_argument("--image", type=Path, help="a DICOM file or a picture")
    search.add_argument("--where", help="filter on metadata: \"view = 'PA' AND split = 'test'\"")
    search.add_argument("--k", type=int, default=10, help="hits (10)")
    search.add_argument("--exclude-patient", help="leave out a patient's own records")
    search.add_argument("--bundle", type=Path, help="the bundle, if it has moved since indexing")
    search.add_argument("--html", type=Path, help="also write a page with pictures")

    phantom = _verb(top, "phantom", "synthetic studies with known truth", _phantom)
    phantom.add_argument("modality", choices=("cxr",))
    phantom.add_argument("out", type=Path)
    phantom.add_argument("--n", type=int, default=200, help="studies (200)")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--level", choices=("easy", "middle", "hard"), default="middle")
    phantom.add_argument("--size-px", type=int, default=256, help="longest side of a film (256)")
    phantom.add_argument(
        "--unobservable", type=float, default=0.3, help="rate of sentences that the image cannot show (0.3)"
    )
    phantom.add_argument("--workers", type=int, help="processes; default: all cores")

    _verb(top, "recipes", "list the recipes", _recipes)
    _verb(top, "doctor", "what is there; what is missing on this machine and how to get it", _doctor)
    return parser


def _progress(arguments: argparse.Namespace) -> Any:
    from medvl.progress import Bar, silent

    return silent() if arguments.quiet or arguments.json else Bar()


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
    with _progress(arguments) as bar:
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
            key=arguments.key.read_bytes() if arguments.key else None,
            workers=arguments.workers,
            retry_failed=arguments.retry_failed,
            progress=bar,
        )
    _show(arguments, summary)
    return 0 if summary.complete else EXIT_SOME_FAILED


def _train(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    if arguments.print_recipe:
        recipe = verbs.resolve_recipe(
            arguments.recipe, modality=arguments.modality, overrides=arguments.overrides
        )
        _write(json.dumps(recipe.model_dump(mode="json"), indent=2) if arguments.json else recipe.to_yaml())
        return 0
    if arguments.data is None or arguments.out is None:
        raise UsageError(
            "train needs DATA and OUT.",
            hint=f"medvl {arguments.modality} train STORE RUN --recipe {arguments.recipe}",
        )
    with _progress(arguments) as bar:
        summary = verbs.train(
            arguments.data,
            arguments.out,
            modality=arguments.modality,
            recipe=arguments.recipe,
            overrides=arguments.overrides,
            progress=bar,
        )
    _show(arguments, summary)
    return summary.exit_code


def _demo(arguments: argparse.Namespace) -> int:
    from medvl.demo import demo

    with _progress(arguments) as bar:
        summary = demo(
            arguments.out, modality=arguments.modality, n=arguments.n, seed=arguments.seed, progress=bar
        )
    _show(arguments, summary)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    with _progress(arguments) as bar:
        result = verbs.evaluate(
            arguments.model,
            arguments.data,
            out=arguments.out,
            split=arguments.split,
            prompts=arguments.prompts,
            resamples=arguments.resamples,
            seed=arguments.seed,
            progress=bar,
        )
    _show(arguments, result)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    _show(arguments, verbs.export(arguments.run_dir, arguments.bundle, onnx=not arguments.no_onnx))
    return 0


def _index(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    if arguments.delete_patient or arguments.delete_record:
        _show(
            arguments,
            verbs.erase(arguments.index, patients=arguments.delete_patient, records=arguments.delete_record),
        )
        return 0
    if arguments.bundle is None or arguments.data is None:
        raise UsageError("index needs BUNDLE, DATA and INDEX.", hint="medvl index BUNDLE STORE INDEX")
    with _progress(arguments) as bar:
        _show(arguments, verbs.index(arguments.bundle, arguments.data, arguments.index, progress=bar))
    return 0


def _search(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    hits = verbs.search(
        arguments.index,
        text=arguments.text,
        image=arguments.image,
        where=arguments.where,
        k=arguments.k,
        exclude_patient=arguments.exclude_patient,
        bundle=arguments.bundle,
        html=arguments.html,
    )
    _show(arguments, hits)
    return 0


def _phantom(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    with _progress(arguments) as bar:
        summary = verbs.phantom(
            arguments.out,
            modality=arguments.modality,
            n=arguments.n,
            seed=arguments.seed,
            level=arguments.level,
            size_px=arguments.size_px,
            unobservable=arguments.unobservable,
            workers=arguments.workers,
            progress=bar,
        )
    _show(arguments, summary)
    return 0


def _recipes(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    _show(arguments, verbs.list_recipes())
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from medvl.doctor import examine

    _show(arguments, examine())
    return 0


def _show(arguments: argparse.Namespace, result: Any) -> None:
    """Print a result: ``to_json()`` for machines, ``lines()`` for people."""
    if arguments.json:
        _write(json.dumps(result.to_json(), indent=2, sort_keys=True, ensure_ascii=False))
    else:
        _write("\n".join(result.lines()))


def _write(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")


def _fail(words: Sequence[str], error: MedvlError) -> int:
    if "--json" in words:
        _write(json.dumps({"code": error.rule, "message": error.message, "hint": error.hint}))
    sys.stderr.write(f"medvl: {error}\n")
    return error.exit_code


def _refused(error: OSError) -> UsageError:
    """Say what the system refused; a path may hold a patient's name, so a file is named by its token."""
    what = f" {file_token(os.fsdecode(error.filename))}" if isinstance(error.filename, str | bytes) else ""
    return UsageError(
        f"the system refused the file or folder{what}: {error.strerror or type(error).__name__}.",
        hint="Check that every path of the call exists and that its outputs can be written.",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="medvl: %(message)s", stream=sys.stderr)
    try:
        arguments = build_parser().parse_args(words)
        return int(arguments.run(arguments))
    except MedvlError as error:
        return _fail(words, error)
    except OSError as error:
        return _fail(words, _refused(error))
    except KeyboardInterrupt:
        sys.stderr.write("medvl: interrupted; run the same command again to go on.\n")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
