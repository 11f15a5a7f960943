r"""Reports in HL7 v2 messages (ORU^R01): framing, character sets, escapes, and which version stands.

Messages are cut at ``MSH``; inside, segments at any line ending. Of several messages for one order the
latest stands: a final replaces a preliminary one, a correction replaces all, an addendum is joined, a
deletion leaves nothing.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from medvl.preprocess.sources.hl7text import Delimiters, charset, decode, moment, unescape

__all__ = ["Hl7Report", "Message", "read_messages", "standing"]

_HEADINGS = {  # LOINC codes of report sections, and the suffixes that HL7 v2.3 gave radiology
    "18782-3": "FINDINGS",
    "59776-5": "FINDINGS",
    "GDT": "FINDINGS",
    "19005-8": "IMPRESSION",
    "IMP": "IMPRESSION",
    "18785-6": "INDICATION",
    "55111-9": "TECHNIQUE",
    "18834-2": "COMPARISON",
    "18783-1": "RECOMMENDATION",
    "REC": "RECOMMENDATION",
    "55107-7": "ADDENDUM",
    "ADT": "ADDENDUM",
}
_STUDY_UID = ("113014", "110180", "STUDY INSTANCE UID", "DICOM STUDY", "STUDYINSTANCEUID")
_WORDS = frozenset(
    "FINDINGS FINDING IMPRESSION CONCLUSION INDICATION HISTORY TECHNIQUE COMPARISON RECOMMENDATION "
    "RECOMMENDATIONS ADDENDUM".split()
) | {"CLINICAL HISTORY"}
_TEXT_TYPES = ("TX", "FT", "ST", "")
_GONE = ("D", "W", "X")
_NAMES = {  # fields that hold persons; they must not survive in the text
    "PID": (5, 6, 9),
    "NK1": (2,),
    "PV1": (7, 8, 9, 17),
    "ORC": (10, 11, 12),
    "OBR": (10, 16, 28, 32, 33, 34, 35),
    "OBX": (16,),
}
_IDS = {"PID": (2, 3, 4, 18, 19, 20), "PV1": (19,), "OBR": (2, 3, 18, 19, 20), "ORC": (2, 3)}


@dataclass(frozen=True)
class Hl7Report:
    """The text that one message says of one order.

    Attributes:
        number: of the message in its file, from 1; ``file`` is the file's place in a list of files.
        accession: OBR-18, else OBR-3, OBR-2, OBR-19; ``others`` are the rest of these.
        patient: PID-3.
        date: of the observation, ``YYYYMMDD`` or "".
        status: ``final``, ``preliminary``, ``corrected``, ``addendum`` or ``deleted``.
        sent: when, as a string that sorts.
        names, ids: what must not survive in the text.
    """

    number: int
    accession: str
    text: str
    status: str = "final"
    others: tuple[str, ...] = ()
    study_uid: str = ""
    patient: str = ""
    date: str = ""
    sent: str = ""
    file: int = 0
    names: tuple[str, ...] = field(default=(), repr=False)
    ids: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Message:
    """One message of a file: its reports, or why there are none; ``ignored`` counts OBX by reason."""

    number: int
    reports: tuple[Hl7Report, ...] = ()
    refusal: str = ""
    ignored: tuple[tuple[str, int], ...] = ()


# --- reading ------------------------------------------------------------------------------------------------


def read_messages(data: bytes) -> list[Message]:
    r"""Read the messages of a file: one or many, bare or in MLLP frames, lines ended by ``\r`` or ``\n``.

    Examples:
        >>> data = b"MSH|^~\\&|R|H|||20240102||ORU^R01|1|P|2.5\rPID|||P1\rOBR|1|A7\rOBX|1|TX|||Clear.||||||F"
        >>> [report.text for message in read_messages(data) for report in message.reports]
        ['Clear.']
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16", "replace").encode("utf-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    lines = re.split(rb"[\r\n\x0b\x1c\x1d\x1e]+", data)  # MLLP frames a message by 0x0B and 0x1C 0x0D
    starts = [index for index, line in enumerate(lines) if line.lstrip().startswith(b"MSH")]
    ends = [*starts[1:], len(lines)]
    return [
        _read_message(number, [line.strip(b" \t\0") for line in lines[start:end]])
        for number, (start, end) in enumerate(zip(starts, ends, strict=False), 1)
    ]


def _read_message(number: int, lines: Sequence[bytes]) -> Message:
    marks = Delimiters.of(lines[0].decode("latin-1"))
    if marks is None:
        return Message(number, refusal="hl7_header_damaged")
    head = _fields(lines[0].decode("latin-1"), marks)
    encoding = charset(_at(head, 18).split(marks.repetition)[0])
    segments = [_fields(decode(line, encoding), marks) for line in lines if line]
    if _at(head, 9).split(marks.component)[0].upper() != "ORU":
        return Message(number, refusal="hl7_not_a_report")
    return _Reader(number, marks, encoding or "utf-8", moment(_at(head, 7))).read(segments)


def _fields(line: str, marks: Delimiters) -> list[str]:
    """Return the fields so that index n is field n; MSH-1 is the delimiter itself."""
    fields = line.split(marks.field)
    return [fields[0], marks.field, *fields[1:]] if fields[0] == "MSH" else fields


def _at(fields: Sequence[str], index: int) -> str:
    return fields[index] if index < len(fields) else ""


class _Reader:
    """Reads one message; an order is an OBR with the OBX that follow it."""

    def __init__(self, number: int, marks: Delimiters, encoding: str, sent: str) -> None:
        self.number, self.marks, self.encoding, self.sent = number, marks, encoding, sent
        self.names: list[str] = []
        self.ids: list[str] = []
        self.ignored: Counter[str] = Counter()

    def read(self, segments: Sequence[Sequence[str]]) -> Message:
        patient = ""
        orders: list[list[Sequence[str]]] = []
        for fields in segments:
            self._note_persons(fields)
            if fields[0] == "PID" and not patient:
                patient = self._first(fields, 3) or self._first(fields, 2)
            elif fields[0] == "OBR":
                orders.append([fields])
            elif fields[0] == "OBX":
                if not orders:
                    orders.append([["OBR"]])
                orders[-1].append(fields)
        found = [self._report(order[0], order[1:], patient) for order in orders]
        said = [report for report in found if report.text or report.status == "deleted"]
        if len(said) == 1:  # one report for several orders stands below one of them
            found = [replace(said[0], accession=r.accession, others=r.others, date=r.date) for r in found]
        else:
            found = said
        names, ids = tuple(dict.fromkeys(self.names)), tuple(dict.fromkeys(self.ids))
        reports = tuple(replace(report, names=names, ids=ids) for report in found)
        return Message(
            self.number,
            reports,
            refusal="" if reports else "hl7_without_text",
            ignored=tuple(sorted(self.ignored.items())),
        )

    def _report(self, order: Sequence[str], observations: Sequence[Sequence[str]], patient: str) -> Hl7Report:
        numbers = [self._first(order, index) for index in (18, 3, 2, 19)]
        numbers = list(dict.fromkeys(number for number in numbers if number))
        lines: list[str] = []
        heading = uid = ""
        statuses: list[str] = []
        removed = False
        for fields in observations:
            code, words = self._code(fields)
            if code.upper() in _STUDY_UID or words.upper() in _STUDY_UID:
                uid = self._first(fields, 5)
                continue
            status = _at(fields, 11).strip().upper()
            removed |= status in _GONE
            if not self._counts(fields, status):
                continue
            statuses.append("ADDENDUM" if _HEADINGS.get(code) == "ADDENDUM" else status)
            text = self._text(fields)
            title = _HEADINGS.get(code) or (words.upper().rstrip(":") if _is_heading(words) else "")
            titled = text.upper().lstrip().startswith(title) or _is_heading(text.partition(":")[0].strip())
            if title and title != heading and not titled:
                lines.append(f"{title}:")
            heading = title or heading
            lines.append(text)
        text = "\n".join(lines).strip()
        return Hl7Report(
            number=self.number,
            accession=numbers[0] if numbers else "",
            others=tuple(numbers[1:]),
            text=text,
            status=_status(_at(order, 25).strip().upper(), statuses, text, removed=removed),
            study_uid=uid,
            patient=patient,
            date=_day(_at(order, 7)) or _day(_at(order, 22)),
            sent=self.sent,
        )

    def _counts(self, fields: Sequence[str], status: str) -> bool:
        kind = _at(fields, 2).strip().upper()
        if status in _GONE:
            self.ignored["hl7_observation_deleted"] += 1
        elif kind in ("ED", "RP"):
            self.ignored["hl7_embedded_document"] += 1
        elif kind not in _TEXT_TYPES:
            self.ignored["hl7_observation_no_text"] += 1
        else:
            return True
        return False

    def _text(self, fields: Sequence[str]) -> str:
        repeats = _at(fields, 5).split(self.marks.repetition)  # a repetition of TX is a line of its own
        return "\n".join(unescape(part, marks=self.marks, encoding=self.encoding) for part in repeats)

    def _code(self, fields: Sequence[str]) -> tuple[str, str]:
        """Return OBX-3's code, or the suffix behind its sub-component mark, and its words."""
        parts = _at(fields, 3).split(self.marks.component)
        code = parts[0].split(self.marks.sub)[-1].strip()
        return code, parts[1].strip() if len(parts) > 1 else code

    def _first(self, fields: Sequence[str], index: int) -> str:
        value = _at(fields, index).split(self.marks.repetition)[0].split(self.marks.component)[0]
        return self._plain(value.split(self.marks.sub)[0])

    def _plain(self, value: str) -> str:
        return unescape(value, marks=self.marks, encoding=self.encoding).strip().strip('"')

    def _note_persons(self, fields: Sequence[str]) -> None:
        for index in _NAMES.get(fields[0], ()):
            for value in _at(fields, index).split(self.marks.repetition):
                if name := self._name(value, person=fields[0] in ("PID", "NK1")):
                    self.names.append(name)
        for index in _IDS.get(fields[0], ()):
            for value in _at(fields, index).split(self.marks.repetition):
                if found := self._plain(value.split(self.marks.component)[0].split(self.marks.sub)[0]):
                    self.ids.append(found)

    def _name(self, value: str, *, person: bool) -> str:
        """Return a name as ``FAMILY^GIVEN^MIDDLE``: XPN, or XCN and CNN, which begin with a number."""
        parts = value.split(self.marks.component)
        if not person:
            inner = parts[0].split(self.marks.sub)
            parts = inner[1:] if len(inner) > 1 else parts[1:]  # CNN, the first part of NDL, uses "&"
        words = [self._plain(part.split(self.marks.sub)[0]) for part in parts[:3]]
        return "^".join(words).rstrip("^").strip()


def _is_heading(words: str) -> bool:
    return words.upper().rstrip(":") in _WORDS


def _day(value: str) -> str:
    """Return the local day of a time stamp as ``YYYYMMDD``, "" when it names none."""
    return moment(value[:8])[:8] if re.match(r"[0-9]{8}", value) else ""


def _status(order: str, statuses: Sequence[str], text: str, *, removed: bool) -> str:
    """Return what a report is from OBR-25 (table 0123), OBX-11 (table 0085) and its first word."""
    if order in _GONE or (removed and not text):
        return "deleted"
    letters = {order, *statuses} - {""}
    addendum = statuses and set(statuses) == {"ADDENDUM"}
    if addendum or "A" in letters or re.match(r"\W*addend", text, re.IGNORECASE):
        return "addendum"
    if "C" in letters:
        return "corrected"
    return "preliminary" if letters & {"P", "R", "S", "I"} and not letters & {"F", "U"} else "final"


# --- versions -----------------------------------------------------------------------------------------------


def standing(reports: Iterable[Hl7Report]) -> Iterator[Hl7Report]:
    """Fold the versions of each order, oldest first, and yield what stands.

    An addendum that repeats the report replaces it; one that does not is joined below it.
    """
    orders: dict[tuple[str, str], list[Hl7Report]] = {}
    for place, report in enumerate(reports):
        key = (report.patient, report.accession or report.study_uid or f"#{place}")
        orders.setdefault(key, []).append(report)
    for versions in orders.values():
        stands: Hl7Report | None = None
        for report in sorted(versions, key=lambda version: version.sent):
            stands = _later(stands, report)
        if stands is not None and stands.text:
            yield stands


def _later(stands: Hl7Report | None, report: Hl7Report) -> Hl7Report | None:
    if report.status == "deleted":
        return None
    if stands is None or report.status == "corrected":
        return report
    if report.status == "preliminary":
        return report if stands.status == "preliminary" else stands
    if report.status == "addendum" and stands.text not in report.text:
        return replace(stands, text=f"{stands.text}\n\n{_as_addendum(report.text)}", sent=report.sent)
    return report


def _as_addendum(text: str) -> str:
    return text if re.match(r"\W*addend", text, re.IGNORECASE) else f"ADDENDUM:\n{text}"
