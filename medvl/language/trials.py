"""What a report encoder is tried on: held-out reports, other wordings of them, and wordings with an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from medvl.corpus import ReportCase, Wording
from medvl.errors import UsageError
from medvl.progress import Progress
from medvl.specs.base import text_hash

__all__ = ["PARTS", "Reword", "Text", "Trials", "make_trials", "text_key"]

Text: TypeAlias = tuple[str, ...]
"""A report as its sentences."""
Table: TypeAlias = dict[tuple[str, str], dict[int, Text]]
"""(part, kind) to the row of a case to its wording."""
Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")


@runtime_checkable
class Reword(Protocol):
    """What makes wordings: ``medvl.preprocess.reports.variants.variants`` and its like."""

    def __call__(self, case: ReportCase, *, seed: int, part: Part) -> tuple[Wording, ...]:
        """Return wordings of a report by the rules of one part."""
        ...


@dataclass
class Trials:
    """Texts of one evaluation; the same for every encoder, so that encoders are compared in pairs.

    Attributes:
        cases: the held-out reports.
        train: the reports that a probe may learn from.
        variants: (part, kind) to row of ``cases`` to a wording with the same facts.
        errors: (part, kind) to row to the report with one error.
        twisted: (part, kind) to row to the paraphrase of held-out rules with one error.
        seed: that made the wordings.
        left_out: held-out reports that are not in ``cases``, because training has their words.
    """

    cases: tuple[ReportCase, ...]
    train: tuple[ReportCase, ...]
    variants: Table = field(default_factory=dict)
    errors: Table = field(default_factory=dict)
    twisted: Table = field(default_factory=dict)
    seed: int = 0
    left_out: int = 0

    @property
    def patients(self) -> list[str]:
        """The patient of each case."""
        return [case.patient_id for case in self.cases]

    def texts(self) -> list[Text]:
        """Return every text once, those of the probe's training reports last."""
        found = [case.sentences for case in self.cases]
        found += [part for case in self.cases for part in (case.findings, case.impression) if part]
        for table in (self.variants, self.errors, self.twisted):
            found += [text for rows in table.values() for text in rows.values()]
        return list(dict.fromkeys([*found, *(case.sentences for case in self.train)]))


def make_trials(
    cases: Sequence[ReportCase],
    *,
    variants: Reword,
    hard_negatives: Reword,
    splits: Sequence[str] = ("test",),
    seed: int = 0,
    known: Collection[str] = (),
    progress: Progress | None = None,
) -> Trials:
    """Make the wordings of the held-out reports, once for all encoders.

    Reports that say the same word for word are one report: the first stands for all. A held-out report whose
    words a training report has, too, is left out and counted: normal findings are often told in set phrases.

    Args:
        cases: a corpus; its ``train`` reports serve the probe, those of ``splits`` are evaluated.
        variants: makes wordings with the same facts.
        hard_negatives: makes wordings with one error.
        splits: what counts as held out.
        seed: of the wordings.
        known: keys of other reports that an encoder was trained on, see :func:`text_key`; left out as well.
        progress: told about each report.

    Raises:
        UsageError: fewer than two different reports are held out.
    """
    train = tuple(case for case in cases if case.split == "train")
    read = {*known, *(text_key(case.sentences) for case in train)}
    held: dict[str, ReportCase] = {}
    for case in cases:
        if case.split in splits:
            held.setdefault(text_key(case.sentences), case)
    unread = tuple(case for key, case in held.items() if key not in read)
    left_out = len(held) - len(unread)
    if len(unread) < 2:
        raise UsageError(
            f"{len(unread)} different reports are in {', '.join(splits)}, without {left_out} whose words "
            f"training has; an evaluation needs at least 2.",
            hint="Read more reports, or hold more of them out.",
        )
    trials = Trials(unread, train, seed=seed, left_out=left_out)
    for row, case in enumerate(trials.cases):
        _reword(trials.variants, variants, row, case, seed=seed)
        _reword(trials.errors, hard_negatives, row, case, seed=seed)
        said = trials.variants.get(("test", "paraphrase"), {}).get(row)
        if said:
            other = dataclasses.replace(case, sentences=said, findings=(), impression=())
            _reword(trials.twisted, hard_negatives, row, other, seed=seed)
        if progress is not None:
            progress(row + 1, len(trials.cases), "making wordings")
    return trials


def _reword(table: Table, rules: Reword, row: int, case: ReportCase, *, seed: int) -> None:
    for part in PARTS:
        for wording in rules(case, seed=seed, part=part):
            table.setdefault((part, wording.kind), {})[row] = wording.sentences


def text_key(text: Sequence[str]) -> str:
    """Return a key that two texts share when they say the same words in the same order."""
    return text_hash(" ".join(text))
