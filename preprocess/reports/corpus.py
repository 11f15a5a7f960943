"""Reports of a record store, a table or a folder as cases: cleaned, labelled, split by patient."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medvl.corpus import ReportCase
from medvl.errors import BadTable, UsageError, file_token, nearest
from medvl.preprocess.reports.findings import VOCABULARIES, describes_image, findings_of, said
from medvl.preprocess.reports.parsing import MAX_CHARACTERS, parse_report
from medvl.preprocess.sources.columns import Overrides, guess_columns, split_name
from medvl.preprocess.sources.labels import row_labels
from medvl.preprocess.sources.tables import SUFFIXES, read_table
from medvl.records import LabelState
from medvl.specs import ReportSpec
from medvl.specs.base import text_hash
from medvl.splits import SPLITS, split_of
from medvl.store import Store

__all__ = ["read_corpus"]

_SPEC = ReportSpec(retrieval_sections=("findings", "impression", "addendum", "body", "discussion"))
_AUTO = "auto"
_OF_CT = re.compile(
    r"\b(?:ct|tomograph\w*|axial|hounsfield|lung (?:parenchyma )?window|contrast material)\b", re.I
)
_OF_CXR = re.compile(
    r"\b(?:radiograph\w*|x-?ray|cxr|pa and lateral|frontal|views?|films?|costophrenic|cardiomediastinal)\b",
    re.I,
)
_QUOTED = re.compile(r'(?<=[.!?)])\s*"+\s+(?=[A-Z])|(?<=[.!?)])\s+"+\s*(?=[A-Z])')
_QUOTES = re.compile(r'\s*"+\s*')
"""How exports write the list of conclusions after the findings: a quotation mark before each."""


@dataclass(frozen=True)
class _Source:
    """One report as a source has it; ``split`` where the source's own split stands.

    What names the patient stays in here: cases are numbered.
    """

    patient: str
    text: str
    labels: dict[str, LabelState]
    split: str = ""


def read_corpus(
    source: str | Path,
    *,
    seed: int = 0,
    split: Sequence[float] = (0.8, 0.1, 0.1),
    vocabulary: str = _AUTO,
    columns: Overrides | None = None,
    limit: int | None = None,
) -> tuple[ReportCase, ...]:
    """Read the reports of a source, in its order.

    Kept are the sentences that describe the examination: findings, impression, text without headings;
    indication, technique, comparison, communication and identity are left out, placeholders are shown as
    :class:`~medvl.specs.ReportSpec` shows them. A report without such a sentence is left out. Labels are
    those of the source's numeric label columns (1, 0, −1), else what the report says.

    The split is by patient, and patients with an equal report are in one split. A record store keeps its
    own split, and so does a table whose split column names one for every report; of their training reports,
    those of a patient who is in another split, or that occur there word for word, are left out.

    Args:
        source: a record store; a table (CSV, TSV, Parquet, Excel), or a folder with tables; or a folder of
            text files, one a report, where the folder of a file names its patient.
        seed: of the split.
        split: shares of train, val and test.
        vocabulary: ``cxr``, ``ct``, or ``auto``: of the store or of the label columns, else by words that
            only one of the examinations uses.
        columns: role to column name of the table where the guess is wrong, such as
            ``{"patient": "case", "text": "findings+impression"}``; see
            :func:`~medvl.preprocess.sources.columns.guess_columns`.
        limit: keep at most this many cases, drawn by the seed.

    Raises:
        UsageError: an unknown vocabulary, a limit below 1, or no report in the source.
        BadTable: the table cannot be read, or has no column of reports.
    """
    if vocabulary not in (*VOCABULARIES, _AUTO):
        raise UsageError(
            f"unknown vocabulary '{vocabulary}'.", hint=nearest(vocabulary, (*VOCABULARIES, _AUTO))
        )
    if limit is not None and limit < 1:
        raise UsageError(f"the limit is {limit}; allowed is at least 1.", hint="Leave it out to take all.")
    path = Path(source)
    found, known = _sources(path, columns)
    if vocabulary == _AUTO:
        vocabulary = known or _vocabulary(found)
    splits = _splits(found, seed=seed, fractions=split)
    prefix = _name("\n".join(item.text for item in found))[:6]
    people: dict[str, int] = {}
    for item in found:
        people.setdefault(item.patient, len(people) + 1)
    order = [row for row, part in enumerate(splits) if part]
    if limit is not None:  # parsed in an order that the seed decides, until enough are found
        order.sort(key=lambda row: _name(f"{seed}:{prefix}:{row}"))
    cases: dict[int, ReportCase] = {}
    for row in order:
        item, names = found[row], (f"{prefix}-{row + 1}", f"{prefix}-p{people[found[row].patient]}")
        case = _case(item, splits[row], vocabulary, names=names)
        if case is not None:
            cases[row] = case
        if len(cases) == limit:
            break
    if not cases:
        raise UsageError(
            f"no report with a sentence that describes an examination is in {file_token(path)}.",
            hint="Name the columns: columns={'text': 'findings+impression'}, or --column text=….",
        )
    return tuple(cases[row] for row in sorted(cases))


def _sources(path: Path, columns: Overrides | None) -> tuple[list[_Source], str]:
    """Return the reports of a path, and the vocabulary where the source knows it."""
    if (path / "store.json").is_file():
        store = Store(path)
        modality = str(store.manifest.get("modality"))
        studies = {record.study_id: record for record in store.records if record.report}
        found = [
            _Source(record.patient_id, record.report, dict(record.labels), record.split)
            for record in studies.values()
        ]
        return found, modality if modality in VOCABULARIES else ""
    if path.is_file():
        return _table(path, columns)
    if not path.is_dir():
        raise UsageError(f"the source {file_token(path)} does not exist.", hint="Check the path.")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    texts = [file for file in files if file.suffix.lower() == ".txt"]
    tables = [file for file in files if file.suffix.lower() in SUFFIXES and file not in texts]
    if texts:
        return [_file(file, path) for file in texts], ""
    parts = [_table(file, columns) for file in tables]
    vocabularies = {known for _, known in parts}
    return [item for part, _ in parts for item in part], vocabularies.pop() if len(vocabularies) == 1 else ""


def _file(file: Path, root: Path) -> _Source:
    data = file.read_bytes()[: 4 * MAX_CHARACTERS]
    relative = file.relative_to(root)
    folder = relative.parent.as_posix()
    patient = relative.as_posix() if folder == "." else folder
    return _Source(patient, data.decode("utf-8-sig", "replace"), {})


def _table(path: Path, columns: Overrides | None) -> tuple[list[_Source], str]:
    frame = read_table(path)
    known = guess_columns(frame, columns=columns)
    if not known.text:
        raise BadTable(
            f"the table {file_token(path)} has no column of reports.",
            hint="Name it: columns={'text': 'report'}, or --column text=report.",
        )
    numeric = known.why.get("labels", "given") != "categories by name"
    labels = row_labels(frame, known) if numeric else [{} for _ in range(len(frame))]
    found = []
    for line, row, states in zip(frame.index, frame.to_dict("records"), labels, strict=True):
        values = known.values(row)
        patient = values.get("patient") or values.get("study") or f"{path.stem}:{line}"
        own = split_name(values.get("split", "")) or ""
        found.append(_Source(patient, known.report_text(row), states, own))
    ours = {name for item in found for name in item.labels}
    fitting = [name for name in VOCABULARIES if ours and ours <= set(findings_of(name))]
    return found, fitting[0] if len(fitting) == 1 else ""


def _vocabulary(found: Sequence[_Source]) -> str:
    ct = sum(bool(_OF_CT.search(item.text)) for item in found)
    cxr = sum(bool(_OF_CXR.search(item.text)) for item in found)
    return "ct" if ct > cxr else "cxr"


def _splits(found: Sequence[_Source], *, seed: int, fractions: Sequence[float]) -> list[str]:
    """Return the split of each report; "" for one that must be left out."""
    hashes = [text_hash(item.text) for item in found]
    if found and all(item.split for item in found):
        names = [
            {f"patient:{item.patient}", *([f"text:{key}"] if key else [])}
            for item, key in zip(found, hashes, strict=True)
        ]
        held = {
            name for item, both in zip(found, names, strict=True) if item.split != SPLITS[0] for name in both
        }
        return [
            "" if item.split == SPLITS[0] and held & both else item.split
            for item, both in zip(found, names, strict=True)
        ]
    groups = _Groups()
    for item, key in zip(found, hashes, strict=True):
        groups.join(f"patient:{item.patient}", f"text:{key}" if key else f"patient:{item.patient}")
    return [
        split_of(groups.find(f"patient:{item.patient}"), seed=seed, fractions=fractions) for item in found
    ]


class _Groups:
    """Keys that belong together; a group is named by its smallest key."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, key: str) -> str:
        parent = self._parent.setdefault(key, key)
        while parent != key:
            grand = self._parent[parent]
            self._parent[key] = grand
            key, parent = parent, grand
        return key

    def join(self, one: str, other: str) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        self._parent[second] = first


def _case(item: _Source, split: str, vocabulary: str, *, names: tuple[str, str]) -> ReportCase | None:
    text = item.text[:MAX_CHARACTERS]
    report = parse_report(text)
    if {section.name for section in report.sections} == {"body"} and (mark := _QUOTED.search(text)):
        concludes = _QUOTES.sub("\n\n", text[mark.end() :]).strip()
        report = parse_report(f"FINDINGS: {text[: mark.start()]}\n\nIMPRESSION: {concludes}")
    described = [
        (sentence.section, words)
        for sentence, words in zip(
            _SPEC.kept(report, "retrieval"), _SPEC.render(report, "retrieval"), strict=True
        )
        if describes_image(sentence) and any(map(str.isalpha, words))
    ]
    if not described:
        return None

    def of(section: str) -> tuple[str, ...]:
        return tuple(words for name, words in described if name == section)

    return ReportCase(
        case_id=names[0],
        patient_id=names[1],
        split=split,
        sentences=tuple(words for _, words in described),
        findings=of("findings"),
        impression=of("impression"),
        labels=item.labels or said(report, vocabulary=vocabulary),
    )


def _name(key: str) -> str:
    return hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=6).hexdigest()
