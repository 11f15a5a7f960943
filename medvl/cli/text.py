"""The commands about report encoders and about the effects of methods."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvl.cli.basis import Verbs, key_values, progress, show, verb
from medvl.notice import NOTICE


def add_text(top: Verbs) -> None:
    """Add ``medvl text adapt`` and ``medvl text evaluate``."""
    group = top.add_parser("text", help="report encoders: adapt a language model, evaluate", epilog=NOTICE)
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=type(group))

    adapt = verb(verbs, "adapt", "make a report encoder out of a decoder language model", _adapt)
    adapt.add_argument(
        "data", type=Path, nargs="+", help="record stores, tables (CSV, Parquet, Excel) or folders of reports"
    )
    adapt.add_argument("out", type=Path, help="the folder to write; an interrupted call is resumed")
    adapt.add_argument("--model", help="folder or hub name of a decoder; default: a small one, trained here")
    adapt.add_argument(
        "--options", help="'small', 'llm' or a YAML file; default: llm with --model, small without"
    )
    adapt.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override any option: supervised.epochs=2 (repeatable)",
    )
    adapt.add_argument("--generator", type=Path, help="folder of a local model that words reports anew")
    _add_reading(adapt)
    adapt.add_argument("--split-seed", type=int, default=0, help="of the split by patient (0)")

    evaluate = verb(verbs, "evaluate", "wordings, errors, impressions, findings; with baselines", _evaluate)
    evaluate.add_argument("model", help="a folder that 'text adapt' wrote, another text model, or 'minilm'")
    evaluate.add_argument("data", type=Path, help="a record store, a table or a folder of reports")
    evaluate.add_argument("--out", type=Path, help="folder of the tables; default: MODEL/evaluation-DATA")
    evaluate.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="another encoder to stand beside it (repeatable)",
    )
    _add_reading(evaluate)
    evaluate.add_argument("--split", choices=("val", "test"), default="test")
    evaluate.add_argument(
        "--split-seed", type=int, help="of the split by patient; default: that of MODEL's adaptation, or 0"
    )
    evaluate.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples (2000)")
    evaluate.add_argument("--seed", type=int, default=0, help="of wordings and draws (0)")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="override a guessed column of a table: text, patient, study … (repeatable)",
    )


def add_mechanisms(top: Verbs) -> None:
    """Add ``medvl mechanisms``."""
    parser = verb(top, "mechanisms", "small experiments on the effects that methods claim", _mechanisms)
    parser.add_argument("out", type=Path, nargs="?", default=Path("medvl-mechanisms"))
    parser.add_argument("--quick", action="store_true", help="three seeds of the quick set, in minutes")
    parser.add_argument("--only", nargs="+", default=[], metavar="KEY", help="some of them: C1 C7")
    parser.add_argument("--seeds", type=int, help="how many, from 0 (5; 3 with --quick)")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (2)")


def _pairs(words: list[str], *, what: str) -> dict[str, str]:
    return key_values(words, wrong=f"{{}} is not of the form {what}.", hint=f"Write {what}.")


def _adapt(arguments: argparse.Namespace) -> int:
    from medvl.config import parse_yaml
    from medvl.language.road import adapt_text

    overrides: dict[str, Any] = {
        key: parse_yaml(value, what=f"the value of {key}")
        for key, value in _pairs(arguments.overrides, what="KEY=VALUE").items()
    }
    with progress(arguments) as bar:
        summary = adapt_text(
            arguments.data,
            arguments.out,
            model=arguments.model,
            options=arguments.options,
            overrides=overrides,
            generator=arguments.generator,
            columns=_pairs(arguments.column, what="ROLE=NAME") or None,
            split_seed=arguments.split_seed,
            progress=bar,
        )
    show(arguments, summary)
    return summary.exit_code


def _evaluate(arguments: argparse.Namespace) -> int:
    from medvl.language.road import evaluate_text

    out = arguments.out
    if out is None and Path(arguments.model).is_dir():
        out = Path(arguments.model) / f"evaluation-{arguments.data.stem}"
    with progress(arguments) as bar:
        found = evaluate_text(
            arguments.model,
            arguments.data,
            out=out,
            against=_pairs(arguments.against, what="NAME=FOLDER"),
            columns=_pairs(arguments.column, what="ROLE=NAME") or None,
            split=arguments.split,
            split_seed=arguments.split_seed,
            seed=arguments.seed,
            resamples=arguments.resamples,
            progress=bar,
        )
    show(arguments, found)
    return 0


def _mechanisms(arguments: argparse.Namespace) -> int:
    from medvl.mechanisms.runner import mechanisms

    with progress(arguments) as bar:
        summary = mechanisms(
            arguments.out,
            quick=arguments.quick,
            only=arguments.only,
            seeds=arguments.seeds,
            workers=arguments.workers,
            progress=bar,
        )
    show(arguments, summary)
    return summary.exit_code
