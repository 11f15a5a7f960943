"""The ``medvl`` command: arguments to verbs; nothing heavy is imported before a verb runs.

Exit status: 0 done; 2 the call or a configuration is wrong; 3 done, but some items failed and are
listed; 4 a file is refused; 130 or 143 interrupted (run the same command again: it resumes).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence

from medvl.cli import data, models, text
from medvl.cli.basis import Parser, write
from medvl.errors import MedvlError, UsageError, file_token
from medvl.notice import NOTICE
from medvl.verbs import MODALITIES
from medvl.version import VERSION

__all__ = ["build_parser", "main"]


def build_parser() -> Parser:
    """Return the parser of the whole command."""
    parser = Parser(
        prog="medvl",
        description="From studies and reports to a vision-language model of your own.",
        epilog=f"{NOTICE} Exit status: 0 done, 2 wrong call, 3 some items failed, 4 file refused, "
        "130 or 143 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"medvl {VERSION}")
    top = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=Parser)

    for modality, words in MODALITIES.items():
        own = top.add_parser(modality, help=f"{words}: prepare, train, demo", epilog=NOTICE)
        verbs = own.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
        data.add_prepare(verbs, modality)
        models.add_modality_verbs(verbs, modality)
    data.add_deid(top)
    data.add_data(top)
    models.add_verbs(top)
    text.add_text(top)
    text.add_mechanisms(top)
    return parser


def _fail(words: Sequence[str], error: MedvlError) -> int:
    if "--json" in words:
        write(json.dumps({"code": error.rule, "message": error.message, "hint": error.hint}))
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
