"""Report encoders on held-out reports, each beside MiniLM, TF-IDF and hashed words: one table a source.

    python -m tests.studies.report_encoders OUT SOURCE... --encoder NAME=DIRECTORY ...

OUT gets a folder for each source with ``table.md``, ``metrics.json`` and ``report.html``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from medvl.language.baselines import Embed, hashed_words, tf_idf
from medvl.language.comparison import compare
from medvl.language.embed import TextEmbedder
from medvl.language.evaluate import evaluate_text
from medvl.language.trials import make_trials
from medvl.preprocess.reports.corpus import read_corpus
from medvl.preprocess.reports.negatives import hard_negatives
from medvl.preprocess.reports.variants import variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--encoder", action="append", default=[], metavar="NAME=DIRECTORY")
    parser.add_argument("--reference", default="minilm", help="differences are told from this encoder")
    parser.add_argument("--splits", nargs="+", default=["test"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=2000)
    given = parser.parse_args()
    loaded: dict[str, Embed] = {"minilm": TextEmbedder.load("minilm")}
    for item in given.encoder:
        name, _, directory = item.partition("=")
        loaded[name] = TextEmbedder.load(directory)
    for source in given.sources:
        cases = read_corpus(source, seed=given.seed)
        trials = make_trials(
            cases, variants=variants, hard_negatives=hard_negatives, splits=given.splits, seed=given.seed
        )
        evaluations = []
        for name, embed in {"hashed words": hashed_words(), "TF-IDF": tf_idf(cases), **loaded}.items():
            start = time.perf_counter()
            evaluations.append(
                evaluate_text(
                    embed,
                    cases,
                    variants=variants,
                    hard_negatives=hard_negatives,
                    name=name,
                    seed=given.seed,
                    resamples=given.resamples,
                    trials=trials,
                )
            )
            print(f"{source.name} {name}: {time.perf_counter() - start:.0f} s", flush=True)
        title = f"Report encoders on {source.name}, held out: {', '.join(given.splits)}"
        made = compare(evaluations, reference=given.reference, title=title)
        print("\n".join(made.lines()))
        print(made.write(given.out / source.name))


if __name__ == "__main__":
    main()
