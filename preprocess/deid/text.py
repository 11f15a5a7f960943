"""Identifying words of a report replaced by what they were, and its dates moved by the patient's days."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from medvl.preprocess.deid.dates import Span, find_dates
from medvl.preprocess.deid.names import find_names

__all__ = ["KINDS", "deidentify_text"]

KINDS = ("name", "id", "phone", "email", "url", "address", "hospital", "age", "date")

_STOP = (
    "AND|OR|AT|ON|IN|FROM|TO|THE|THIS|THAT|WITH|FOR|BY|OF|WAS|IS|WERE|HAS|AS|VIA|PER|WHO|CT|MRI?|PET|US|XR|CXR"
    "|A|AN|HIS|HER|OUR|FINDINGS?|IMPRESSION|TECHNIQUE|COMPARISON|INDICATION|HISTORY|EXAM(?:INATION)?|REPORT|DATE|TIME"
    "|CHEST|RADIOLOGY|CARDIOLOGY|PATHOLOGY|DEPARTMENT|SERVICE|TEAM|PHONE|TELEPHONE|MALE|FEMALE|UNKNOWN|NONE|NO|NOT|SUPINE"
    "|EMERGENCY|ONCOLOGY|SURGERY|PATIENT|TECHNOLOGIST|RADIOLOGIST|NEURORADIOLOGY|MRN|DOB|ACCESSION|REGARDING|DICTATED|SIGNED"
)
_NOT_A_NAME = rf"(?!(?i:{_STOP})\b)"
_W = rf"{_NOT_A_NAME}[A-ZÀ-Þ][\w'’-]+"
_I = r"[A-Z]\b\.?"
_NAME = rf"(?:{_I} ?){{0,2}}{_W}(?: (?:{_I} )?{_W}){{0,2}}"
_LAST_FIRST = rf"{_W}(?: {_W})?, ?{_W}(?: {_I})?"
_CREDENTIALS = r"(?:M\.?D\.?|D\.?O\.?|Ph\.?D\.?|MBBS|MBBCh|FRCR|FRCPC|R\.?N\.?|PA-C|PA|NP|RT\(R\)|RT|RRA)"
_NUMBER = r"(?=[A-Za-z-]{0,6}\d)[A-Za-z0-9][A-Za-z0-9/-]{2,24}"

_TITLED = re.compile(
    rf"(?:[D](?:[Rr]s?|octor)|M(?:rs?|s|iss|RS)|Prof(?:essor)?)\b(?:\. ?| )(?P<name>{_NAME})"
    r"|(?:[Dd]r)\. ?(?P<low>(?!the\b|and\b|to\b|for\b|on\b|in\b|at\b)[a-z]{3,})"
)
_SIGNED = re.compile(
    r"\b(?i:(?:electronically |digitally |final(?:ly)? )?(?:signed|dictated|transcribed|verified|approved|interpreted|"
    r"finalized|authenticated|read|reviewed|reported|performed|ordered|requested|prepared|attested|entered|typed|scanned)"
    r"(?: and \w+)?(?: electronically)? by|radiologist|technologist|attending(?: physician| radiologist)?|resident|fellow|"
    r"dictator|transcriptionist|consultant|(?:referring|ordering|requesting|interpreting|reading|attending)? ?(?:physician|"
    r"provider|clinician)|(?:patient|pt)'?s? ?name|name)(?:\s*:\s*|(?<=by) )(?:(?i:dr)\.? )?"
    rf"(?P<name>{_LAST_FIRST}|{_NAME})"
)
_PATIENT = re.compile(rf"\b(?:Patient|PATIENT|Pt|PT|Re|RE): ?(?P<name>{_LAST_FIRST}|{_W} (?:{_I} )?{_W})")
_CREDENTIALED = re.compile(rf"(?P<name>{_NAME}),? {_CREDENTIALS}(?![\w-])")
_KEYWORD_ID = re.compile(
    r"\b(?i:MRN|M\.R\.N\.|UR ?N|medical record(?: (?:number|no|num))?|accession(?: (?:number|no|num))?|acc(?: (?:number|no))|"
    r"(?:patient|pt|hospital|study|exam|visit|encounter|account|acct|chart|case|order|unit|specimen|insurance|policy|"
    r"license|member|NHS|CHI|SSN|social security|health card|medicare|passport|personal)"
    r"(?: (?:id|identifier|number|no|num|nr|code|record)\b|(?= ?#))+|SSN|NHS|patient_id|study_id|subject_id)"
    rf"\.?[ ]?(?:[:#=]|is|was)?[ ]?#?[ ]?(?P<id>{_NUMBER}(?:[ ]\d{{2,6}}){{0,3}})(?!\w)"
)
_PHONE = re.compile(
    r"(?:\+\d{1,3}[ .-]?)?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?!\d)"
    r"|\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,5}(?!\d)|(?P<ssn>\d{3}-\d\d-\d{4})(?!\d)"
)
_KEYWORD_PHONE = re.compile(
    r"\b(?i:phone|telephone|tel|pager|beeper|fax|mobile|cell|cellphone|extension|ext|x-?tension|pgr|contact)"
    r"(?i:\.?[ ]?(?:number|no\.?|#|at|is)?[ ]?[:#.]?[ ]?)(?P<id>\+?[\d(][\d().-]{0,6}(?:[ ]?[\d().-]{2,5}){0,4}\d)(?!\w)"
)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_URL = re.compile(r"(?:https?://|www\.)[^\s<>()\"\]]*[\w/]", re.IGNORECASE)
_STREETS = "Street|Avenue|Road|Boulevard|Lane|Drive|Highway|Parkway|Terrace|Square"
_ADDRESS = re.compile(
    r"[1-9]\d{0,4}[A-Za-z]?,? (?:[NSEW]\.? |North |South |East |West )?(?:(?:[A-Z][a-z'’]+|\d{1,3}(?:st|nd|rd|th)) ){1,3}"
    rf"(?:{_STREETS}|St|Ave|Rd|Blvd|Ln|Hwy|Pkwy|Court|Way|Place)\b\.?"
    r"(?:,? (?:Apt|Suite|Ste|Unit|#)\.? ?\w{1,5})?(?:,? [A-Z][a-z]+(?: [A-Z][a-z]+)?)?(?:,? [A-Z]{2})?(?:,? \d{5}(?:-\d{4})?)?"
    rf"|[1-9]\d{{0,4}} (?:[A-Z]+ ){{1,3}}(?:{_STREETS.upper()}|BLVD|AVE)\b(?:, [A-Z]+)?(?:,? [A-Z]{{2}})?(?:,? \d{{5}}(?:-\d{{4}})?)?"
    r"|P\.?O\.? Box \d+"
)
_ADDRESS_CUE = re.compile(
    r"\b(?i:(?:home |street |mailing )?address)\s*:\s*(?P<id>[^\n;]{4,80}?)(?=\s*(?:$|[\n;]|\.(?:\s|$)))"
)
_GENERIC = (
    "THE|THIS|OUR|YOUR|AN?|AT|IN|FROM|TO|OF|ON|BY|AND|OR|WITH|FOR|OUTSIDE|OTHER|ANOTHER|PRIOR|LOCAL|REFERRING|DURING"
    "|HOME|ACUTE|PATIENT|DENTAL|PAIN|CHEST|LUNG|HEART|PULMONARY|CARDIOLOGY|ONCOLOGY|RADIOLOGY|SURGERY|SURGICAL|BREAST"
    "|URGENT|CARE|EMERGENCY|PRIMARY|FOLLOW|OUTPATIENT|INPATIENT|TERTIARY|SAME|VISITING|NEARBY|WOUND|FAMILY|HIV|TB|SLEEP"
    "|PER|VIA|AFTER|BEFORE|AFFILIATED|COMMUNITY|TRANSFERRED|ADMITTED|SEEN|HIS|HER|WAS|IS|DEPARTMENT|TEACHING"
    "|PULMONOLOGY|RHEUMATOLOGY|COAGULATION|ANTICOAGULATION|MEDICINE|NEUROLOGY|SPECIALTY|HEALTH|MEDICAL"
)
_H = rf"(?!(?i:{_GENERIC})\b)[A-Z][\w'’&-]*\.?"
_HOSPITAL = re.compile(
    rf"(?:{_H} (?:(?:of|and|&|for) )?){{1,4}}(?i:(?:(?:general|university|regional|community|memorial|children'?s|county|"
    r"medical|teaching|veterans?|district|city|health|cancer|care|imaging) ){0,3}"
    r"(?:hospitals?|infirmary|clinic|hospice|healthcare|health system|(?:medical|med|health|cancer|imaging|radiology) (?:centers?|"
    r"centres?|ctr|group|associates)))\b(?: of(?: [A-Z][\w'’-]+){1,3})?"
    rf"|(?i:hospital|university|medical center|clinic) (?:of|de) (?:{_H})(?: {_H}){{0,2}}"
)
_OLD = re.compile(
    r"(?P<age>9\d|1[0-4]\d)(?=[- ]?(?i:years?|yrs?|yr\.?)[- ]?(?i:old|of[- ]age|male|female|man|woman|lady|gentleman|[MF]\b)"
    r"|[- ]?(?i:y\.? ?o\b|y/o\b|yo[mf]?\b)|[MF]\b|-?(?i:year|yr)s?\b-)"
)
_AGED = re.compile(r"\b(?i:aged?)(?: is|:|=| of)? ?(?P<age>9\d|1[0-4]\d)(?![\d+%]|\.\d| ?(?:mm|cm))")


def deidentify_text(
    text: str, *, names: Sequence[str] = (), ids: Sequence[str] = (), shift_days: int = 0
) -> tuple[str, dict[str, int]]:
    """Replace what could identify a person; everything else stays byte by byte.

    The names and ids that a header or a table states are found in any rendering; others by what stands
    around them: a title, "signed by", a credential, "MRN", the form of a telephone number, an e-mail
    address, a street, a hospital. Each becomes a token, ``[name]``, ``[id]``, ``[phone]``, ``[email]``, ``[url]``,
    ``[address]`` or ``[hospital]``; an age over 89 becomes ``90+``; a date moves and keeps its format. A name that
    is also a word of reports (Small, Long, White) goes only where a title, the rest of the name or a
    capital inside a sentence says that it is one. What only a reader would recognise stays: this helps,
    and guarantees nothing.

    Args:
        text: a report, or any free text.
        names: of the patient and of staff, as DICOM person names (``DOE^JOHN``) or plain.
        ids: record, accession and telephone numbers; those under four characters are left to patterns.
        shift_days: how far dates move; 0 leaves them as they are.

    Returns:
        The clean text, and how many were replaced by kind, only kinds that occurred. A second pass with
        ``shift_days=0`` changes nothing.

    Examples:
        >>> text = "Mr. Doe, MRN 123456, seen by Dr. Ann Lee on 03/12/2015. Nodule of 4.2 cm, 3/4 of lobe."
        >>> deidentify_text(text, names=["DOE^JOHN"], shift_days=-10)[0]
        'Mr. [name], MRN [id], seen by Dr. [name] on 03/02/2015. Nodule of 4.2 cm, 3/4 of lobe.'
    """
    low = text.lower()
    spans = list(find_names(text, low, names))
    spans += _given_ids(text, low, ids)
    for gate, find in _FINDERS:
        if any(word in low for word in gate):
            spans += find(text)
    if shift_days:
        spans += find_dates(text, shift_days=shift_days)
    if not spans:
        return text, {}
    return _replaced(text, spans)


def _replaced(text: str, spans: list[Span]) -> tuple[str, dict[str, int]]:
    pieces: list[str] = []
    counts: Counter[str] = Counter()
    at = 0
    for span in _joined(spans):
        if text[span.start : span.end] == span.shown:
            continue
        pieces += (text[at : span.start], span.shown)
        counts[span.kind] += 1
        at = span.end
    return "".join(pieces) + text[at:], dict(counts)


def _joined(spans: list[Span]) -> list[Span]:
    """Join spans that overlap; the longest names the kind, and a token wins over a moved date."""
    joined: list[Span] = []
    for span in sorted(spans):
        if not joined or span.start >= joined[-1].end:
            joined.append(span)
            continue
        last = joined[-1]
        main = max(last, span, key=lambda each: (each.shown.startswith("["), each.end - each.start))
        joined[-1] = Span(last.start, max(last.end, span.end), main.kind, main.shown)
    return joined


def _given_ids(text: str, low: str, ids: Sequence[str]) -> Iterator[Span]:
    for number in ids:
        plain = number.strip().lower()
        for form in {plain, plain.lstrip("0")}:
            if len(form) < 4 or (form.isalpha() and len(form) < 6):
                continue
            start = low.find(form)
            while start >= 0:
                end = start + len(form)
                if not (start and low[start - 1].isalnum()) and not low[end : end + 1].isalnum():
                    decimal = low[end : end + 1] == "." and low[end + 1 : end + 2].isdigit()
                    if len(form) > 4 or not (decimal or low[max(0, start - 1) : start] == "."):
                        yield Span(start, end, "id", "[id]")
                start = low.find(form, end)


def _by(pattern: re.Pattern[str], kind: str) -> Callable[[str], Iterator[Span]]:
    """Return a finder: the pattern's named group, or all of it, becomes the kind's token."""
    group = next(iter(pattern.groupindex), 0)

    def find(text: str) -> Iterator[Span]:
        for match in pattern.finditer(text):
            if match[group] is not None and not _inside_word(text, match.start()):
                yield Span(*match.span(group), kind, f"[{kind}]")

    return find


def _inside_word(text: str, start: int) -> bool:
    """Whether a match begins in the middle of a word or of a number."""
    if not start or not text[start].isalnum():
        return False
    before = text[start - 1]
    if before in ".-/" and start > 1:
        return text[start].isdigit() and text[start - 2].isdigit()
    return before.isalnum() or before == "_"


def _titled(text: str) -> Iterator[Span]:
    for match in _TITLED.finditer(text):
        if not _inside_word(text, match.start()):
            yield Span(*match.span("name" if match["name"] else "low"), "name", "[name]")


def _phones(text: str) -> Iterator[Span]:
    for match in _PHONE.finditer(text):
        if not _inside_word(text, match.start()) and (match["ssn"] or sum(map(str.isdigit, match[0])) >= 8):
            kind = "id" if match["ssn"] else "phone"
            yield Span(*match.span(), kind, f"[{kind}]")


def _ages(text: str) -> Iterator[Span]:
    for pattern in (_OLD, _AGED):
        for match in pattern.finditer(text):
            if not _inside_word(text, match.start()):
                yield Span(*match.span("age"), "age", "90+")


_FINDERS: tuple[tuple[tuple[str, ...], Callable[[str], Iterator[Span]]], ...] = (
    (("dr", "mr", "ms ", "ms.", "miss", "prof", "doctor"), _titled),
    (
        ("signed", " by", "ologist", "attending", "resident", "fellow", "dictator", "consultant", "physician")
        + ("provider", "clinician", "name", "transcriptionist"),
        _by(_SIGNED, "name"),
    ),
    (("patient:", "pt:", "re:"), _by(_PATIENT, "name")),
    (
        (
            " md",
            " m.d",
            " do",
            " d.o",
            "phd",
            "ph.d",
            "mbb",
            "frc",
            " rn",
            " r.n",
            " pa",
            " np",
            " rt",
            "rra",
        ),
        _by(_CREDENTIALED, "name"),
    ),
    (
        (
            "mrn",
            "m.r.n",
            "urn",
            "record",
            "accession",
            "acc n",
            " id",
            "number",
            " no",
            "num",
            "#",
            "ssn",
            "nhs",
            "_id",
        )
        + ("identifier", " nr", " code"),
        _by(_KEYWORD_ID, "id"),
    ),
    (("-", ".", "+", "("), _phones),
    (
        ("phone", "tel", "pager", "beeper", "fax", "mobile", "cell", "ext", "pgr", "contact"),
        _by(_KEYWORD_PHONE, "phone"),
    ),
    (("@",), _by(_EMAIL, "email")),
    (("http", "www."), _by(_URL, "url")),
    (
        (
            "street",
            "avenue",
            "road",
            "boulevard",
            "lane",
            "drive",
            "highway",
            "parkway",
            "terrace",
            "square",
            " st",
        )
        + (" ave", " rd", "blvd", " ln", "hwy", "pkwy", "court", " way", " place", "box "),
        _by(_ADDRESS, "address"),
    ),
    (("address",), _by(_ADDRESS_CUE, "address")),
    (
        (
            "hospi",
            "infirmary",
            "clinic",
            "healthcare",
            "health ",
            "center",
            "centre",
            " ctr",
            "university",
            "associates",
        ),
        _by(_HOSPITAL, "hospital"),
    ),
    (("year", "yr", "y.o", "y.", "y/o", "yo", "9", "1"), _ages),
)
"""Words one of which must be in the text, and the search that only then is worth its time."""
