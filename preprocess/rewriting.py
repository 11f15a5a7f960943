"""The reports of a whole store rewritten by a local model, kept beside the originals."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvl.errors import UsageError
from medvl.notice import NOTICE
from medvl.preprocess.lock import hold
from medvl.preprocess.manifest import replace_records
from medvl.preprocess.reports.findings import VOCABULARIES, sentence_states
from medvl.preprocess.reports.rewrite import PROMPT, Generator, rewrite_sentences
from medvl.progress import Progress
from medvl.store import Store

__all__ = ["RewriteSummary", "rewrite_store"]


@dataclass(frozen=True)
class RewriteSummary:
    """What became of the sentences of a store.

    Attributes:
        store: the folder.
        reports: different reports.
        sentences: of them, counted once a report.
        rewritten: sentences that now stand in other words.
        refused: reason to number of sentences that stay as they were.
    """

    store: Path
    reports: int
    sentences: int
    rewritten: int
    refused: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return dataclasses.asdict(self) | {"store": str(self.store), "notice": NOTICE}

    def lines(self) -> list[str]:
        """Return the summary for people."""
        lines = [f"{self.rewritten} of {self.sentences} sentences of {self.reports} reports rewritten"]
        lines += [f"refused: {count} × {reason}" for reason, count in sorted(self.refused.items())]
        return [*lines, "train on them with --set data.view=rewritten", NOTICE]


def rewrite_store(
    path: str | Path,
    generator: Generator,
    *,
    prompt: str = PROMPT,
    progress: Progress | None = None,
) -> RewriteSummary:
    """Rewrite the retrieval view of every report; a sentence stays where anything medical would move.

    The originals stay; the new sentences are ``Record.rewritten``. Answers of the model are cached in
    ``private/rewrites.jsonl``, so a run that was killed goes on where it stopped.

    Args:
        path: the store.
        generator: the model; see :func:`medvl.encoders.generator.load_generator`.
        prompt: text with ``{sentence}`` once.
        progress: called with reports done, reports in all, and the step.

    Raises:
        UsageError: the store's modality has no vocabulary of findings, so nothing could be checked.
        ConfigError: the prompt does not hold ``{sentence}`` once.
    """
    path = Path(path)
    (path / "private").mkdir(mode=0o700, exist_ok=True)
    with hold(path / "private" / "lock"):
        store = Store(path)
        modality = str(store.manifest.get("modality"))
        if modality not in VOCABULARIES:
            raise UsageError(
                f"no findings are known for the modality '{modality}', so no rewriting could be checked.",
                hint=f"Allowed: {', '.join(VOCABULARIES)}.",
            )
        views = sorted({record.retrieval for record in store.records if record.retrieval})
        states = functools.partial(sentence_states, vocabulary=modality)
        answers = rewrite_sentences(
            views,
            generator,
            states=states,
            cache=path / "private" / "rewrites.jsonl",
            prompt=prompt,
            parser=store.report_spec.parser,
        )
        new, refused, changed = {}, Counter[str](), 0
        for done, (view, answer) in enumerate(zip(views, answers, strict=True), 1):
            new[view] = answer.sentences
            refused.update(reason for reason in answer.refused if reason)
            changed += sum(a != b for a, b in zip(view, answer.sentences, strict=True))
            if progress is not None:
                progress(done, len(views), "rewriting reports")
        replace_records(
            store,
            [dataclasses.replace(r, rewritten=new.get(r.retrieval, ())) for r in store.records],
            marks={"rewritten": {"generator": generator.digest, "prompt": prompt}},
        )
    return RewriteSummary(
        store=path,
        reports=len(views),
        sentences=sum(map(len, views)),
        rewritten=changed,
        refused=dict(refused),
    )
