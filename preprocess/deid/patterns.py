"""What identifies by its form or by the words around it: titles, signatures, numbers, places, great ages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from medvl.preprocess.deid.dates import Span

__all__ = ["find_patterns"]


def _any(words: str) -> str:
    """Return a pattern that matches one of the words; ``_`` stands for a blank."""
    return "(?:" + "|".join(word.replace("_", "[ ]") for word in words.split()) + ")"


# Words that end a name, or that stand where a name could: the next heading, a department, a sex.
_STOP = _any(
    r"""
    AND OR AT ON IN FROM TO THE THIS THAT WITH FOR BY OF WAS IS WERE HAS AS VIA PER WHO CT MRI? PET US
    XR CXR A AN HIS HER OUR FINDINGS? IMPRESSION TECHNIQUE COMPARISON INDICATION HISTORY
    EXAM(?:INATION)? REPORT DATE TIME CHEST RADIOLOGY CARDIOLOGY PATHOLOGY DEPARTMENT SERVICE TEAM PHONE
    TELEPHONE MALE FEMALE UNKNOWN NONE NO NOT SUPINE EMERGENCY ONCOLOGY SURGERY PATIENT TECHNOLOGIST
    RADIOLOGIST NEURORADIOLOGY MRN DOB ACCESSION REGARDING DICTATED SIGNED M\.?D D\.?O RN NP PA RT
    PH\.?D
    """
)
_W = rf"(?!(?i:{_STOP})\b|X+\b)[A-ZÀ-Þ](?:[\w-]|['’](?=\w\w))+"
_I = r"[A-Z]\b\.?"
_NAME = rf"(?:{_I} ?){{0,2}}{_W}(?: (?:{_I} )?{_W}){{0,2}}"
_LAST_FIRST = rf"{_W}(?: {_W})?, ?{_W}(?: {_I})?"
_NUMBER = r"(?=[A-Za-z-]{0,6}\d)[A-Za-z0-9][A-Za-z0-9/-]{2,24}"

_TITLED = re.compile(
    rf"(?:[D](?:[Rr]s?|octor)|M(?:rs?|s|iss|RS)|Prof(?:essor)?)\b(?:\. ?| )(?P<name>{_NAME})"
    r"|(?:[Dd]r)\. ?(?P<low>(?!the\b|and\b|to\b|for\b|on\b|in\b|at\b)[a-z]{3,})"
)
_DONE = _any(
    """
    signed dictated transcribed verified approved interpreted finalized authenticated read reviewed
    reported performed ordered requested prepared attested entered typed scanned
    """
)
_ROLES = _any(
    """
    radiologist technologist attending(?:_physician|_radiologist)? resident fellow dictator
    transcriptionist consultant
    (?:(?:referring|ordering|requesting|interpreting|reading|attending)_)?(?:physician|provider|clinician)
    (?:(?:patient|pt)(?:'s)?_)?name
    """
)
_SIGNED = re.compile(
    rf"\b(?i:{_DONE}(?: and \w+)?(?: electronically)? by|{_ROLES})(?:\s*:\s*|(?<=by) )(?:(?i:dr)\.? )?"
    rf"(?P<name>{_LAST_FIRST}|{_NAME})"
)
_PATIENT = re.compile(rf"\b(?:Patient|PATIENT|Pt|PT|Re|RE): ?(?P<name>{_LAST_FIRST}|{_W} (?:{_I} )?{_W})")
_CREDENTIAL = re.compile(
    r"[DFMPR](?:\.?D\.?|\.?O\.|h\.?D\.?|BBS|BBCh|RCR|RCPC|N\.?|A-C|RA)(?![\w-])"
    r"|(?:(?<=, )(?:DO|RN|PA|NP|RT))(?![\w-])"
)
_NAME_BEFORE = re.compile(rf"(?<!\w)(?P<name>{_NAME}),? $")
_OWNERS = _any(
    """
    patient pt hospital study exam visit encounter account acct chart case order unit specimen insurance
    policy license member NHS CHI SSN social_security health_card medicare passport personal
    medical_record accession acc record
    """
)
_KEYWORD_ID = re.compile(
    rf"\b(?i:MRN|M\.R\.N\.|URN|medical record|accession|"
    rf"{_OWNERS}(?: (?:id|identifier|number|no|num|nr|code|record)\b|(?= ?#))+"
    r"|SSN|NHS|patient_id|study_id|subject_id)"
    rf"\.?[ ]?(?:[:#=]|is|was)?[ ]?#?[ ]?(?P<id>{_NUMBER}(?:[ ]\d{{2,6}}){{0,3}})(?!\w)"
)
_PHONE = re.compile(
    r"(?:\+\d{1,3}[ .-]?)?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?!\d)"
    r"|\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,5}(?!\d)|(?P<ssn>\d{3}-\d\d-\d{4})(?!\d)"
)
_PHONE_GATE = re.compile(r"\d\d[.-]\d{4}|\d-\d\d-\d{4}|\+\d")
_LINES = _any(
    "phone telephone tel pager beeper fax mobile cell cellphone extension ext x-?tension pgr contact"
)
_KEYWORD_PHONE = re.compile(
    rf"\b(?i:{_LINES}\.?[ ]?(?:number|no\.?|\#|at|is)?[ ]?[:#.]?[ ]?)"
    r"(?P<id>\+?[\d(][\d().-]{0,6}(?:[ ]?[\d().-]{2,5}){0,4}\d)(?!\w)"
)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_URL = re.compile(r"(?:https?://|www\.)[^\s<>()\"\]]*[\w/]", re.IGNORECASE)
_STREETS = "Street Avenue Road Boulevard Lane Drive Highway Parkway Terrace Square"
_ZIP = r"(?:,? [A-Z]{2})?(?:,? \d{5}(?:-\d{4})?)?"
_ADDRESS = re.compile(
    r"[1-9]\d{0,4}[A-Za-z]?,? (?:(?:[NSEW]\.?|North|South|East|West) )?"
    r"(?:(?:[A-Z][a-z'’]+|\d{1,3}(?:st|nd|rd|th)) ){1,3}"
    rf"{_any(_STREETS + ' St Ave Rd Blvd Ln Hwy Pkwy Court Way Place')}\b\.?"
    rf"(?:,? (?:Apt|Suite|Ste|Unit|#)\.? ?\w{{1,5}})?(?:,? [A-Z][a-z]+(?: [A-Z][a-z]+)?)?{_ZIP}"
    rf"|[1-9]\d{{0,4}} (?:[A-Z]+ ){{1,3}}{_any(_STREETS.upper() + ' BLVD AVE')}\b(?:, [A-Z]+)?{_ZIP}"
    r"|P\.?O\.? Box \d+"
)
_ADDRESS_CUE = re.compile(
    r"\b(?i:(?:home |street |mailing )?address)\s*:\s*(?P<id>[^\n;]{4,80}?)(?=\s*(?:$|[\n;]|\.(?:\s|$)))"
)
# Words before "hospital" or "clinic" that name none: the outside hospital, the chest clinic.
_GENERIC = _any(
    """
    THE THIS OUR YOUR AN? AT IN FROM TO OF ON BY AND OR WITH FOR OUTSIDE OTHER ANOTHER PRIOR LOCAL
    REFERRING DURING HOME ACUTE PATIENT DENTAL PAIN CHEST LUNG HEART PULMONARY CARDIOLOGY ONCOLOGY
    RADIOLOGY SURGERY SURGICAL BREAST URGENT CARE EMERGENCY PRIMARY FOLLOW OUTPATIENT INPATIENT TERTIARY
    SAME VISITING NEARBY WOUND FAMILY HIV TB SLEEP PER VIA AFTER BEFORE AFFILIATED COMMUNITY TRANSFERRED
    ADMITTED SEEN HIS HER WAS IS DEPARTMENT TEACHING PULMONOLOGY RHEUMATOLOGY COAGULATION
    ANTICOAGULATION MEDICINE NEUROLOGY SPECIALTY HEALTH MEDICAL
    """
)
_H = rf"(?:(?:St|Mt|Ft)\.|(?!(?i:{_GENERIC})\b|X+\b)[A-Z][\w'’&-]*)"
_SORTS = _any(
    "general university regional community memorial children's county medical teaching veterans? district"
    " city health cancer care imaging"
)
_HOUSES = _any(
    """
    hospitals? infirmary clinic hospice healthcare health_system
    (?:medical|med|health|cancer|imaging|radiology)_(?:centers?|centres?|ctr|group|associates)
    """
)
_HOUSE = re.compile(rf"\b(?i:{_HOUSES})\b(?: (?:of|de)(?: {_H}){{1,3}})?")
_HOUSE_NAME = re.compile(rf"(?<![\w'’-])(?:{_H} (?:(?:of|and|&|for) )?){{1,4}}(?:(?i:{_SORTS}) ){{0,3}}$")
_UNIVERSITY = re.compile(rf"[Uu](?i:niversity) of (?:{_H})(?: {_H}){{0,2}}")
_OLD = re.compile(
    r"(?P<age>9\d|1[0-4]\d)(?=[- ]?(?i:years?|yrs?|yr\.?)[- ]?"
    r"(?i:old|of[- ]age|male|female|man|woman|lady|gentleman|[MF]\b)"
    r"|[- ]?(?i:y\.? ?o\b|y/o\b|yo[mf]?\b)|[MF]\b|-?(?i:year|yr)s?\b-)"
)
_AGED = re.compile(r"\b(?i:aged?)(?: is|:|=| of)? ?(?P<age>9\d|1[0-4]\d)(?![\d+%]|\.\d| ?(?:mm|cm))")


LEAST_DIGITS = 4
"""Of a telephone number or an extension: a cell of 12 mm has none."""


def find_patterns(text: str, low: str) -> Iterator[Span]:
    """Yield what identifies by itself, each with its token.

    Args:
        text: the report.
        low: the report in lower case.
    """
    for gate, find in _FINDERS:
        if any(word in low for word in gate):
            yield from find(text)


def _by(pattern: re.Pattern[str], kind: str) -> Callable[[str], Iterator[Span]]:
    """Return a finder: the pattern's named group, or all of it, becomes the kind's token."""
    group = next(iter(pattern.groupindex), 0)

    def find(text: str) -> Iterator[Span]:
        for match in pattern.finditer(text):
            found = match[group] or ""
            if kind == "phone" and sum(map(str.isdigit, found)) < LEAST_DIGITS:
                continue
            if found and not _inside_word(text, match.start()):
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


def _credentialed(text: str) -> Iterator[Span]:
    for match in _CREDENTIAL.finditer(text):
        if name := _NAME_BEFORE.search(text, max(0, match.start() - 60), match.start()):
            yield Span(*name.span("name"), "name", "[name]")


def _hospitals(text: str) -> Iterator[Span]:
    for match in _HOUSE.finditer(text):
        name = _HOUSE_NAME.search(text, max(0, match.start() - 80), match.start())
        if name or re.search(" (?:of|de) ", match[0]):
            yield Span(name.start() if name else match.start(), match.end(), "hospital", "[hospital]")
    for match in _UNIVERSITY.finditer(text):
        yield Span(*match.span(), "hospital", "[hospital]")


def _phones(text: str) -> Iterator[Span]:
    if not _PHONE_GATE.search(text):
        return
    for match in _PHONE.finditer(text):
        if not _inside_word(text, match.start()) and (match["ssn"] or sum(map(str.isdigit, match[0])) >= 8):
            kind = "id" if match["ssn"] else "phone"
            yield Span(*match.span(), kind, f"[{kind}]")


def _ages(text: str) -> Iterator[Span]:
    for pattern in (_OLD, _AGED):
        for match in pattern.finditer(text):
            if not _inside_word(text, match.start()):
                yield Span(*match.span("age"), "age", "90+")


def _gate(words: str) -> tuple[str, ...]:
    """Return words to look for first; ``_`` stands for a blank."""
    return tuple(word.replace("_", " ") for word in words.split())


_FINDERS: tuple[tuple[tuple[str, ...], Callable[[str], Iterator[Span]]], ...] = (
    (_gate("dr mr ms_ ms. miss prof doctor"), _titled),
    (
        _gate("_by_ _by: ogist attending resident fellow dictator consultant ician provider name tionist"),
        _by(_SIGNED, "name"),
    ),
    (_gate("patient: pt: re:"), _by(_PATIENT, "name")),
    (_gate("md m.d d.o phd ph.d mbb frc _rn r.n pa-c ,_do ,_pa ,_np ,_rt rra"), _credentialed),
    (
        (
            *_gate(
                "mrn m.r.n urn_ urn: record accession _id_ _id: _id# number _no. _no: patient_no_ case_no_"
            ),
            *_gate("chart_no_ hospital_no_ # ssn nhs identifier _nr _code"),
            *("patient_id", "study_id", "subject_id"),
        ),
        _by(_KEYWORD_ID, "id"),
    ),
    (_gate("- . + ("), _phones),
    (
        _gate(
            "phone tel_ tel: tel. pager beeper fax mobile_ cell_ cell: _ext_ _ext. _ext: extension_ tension"
            " pgr contact_"
        ),
        _by(_KEYWORD_PHONE, "phone"),
    ),
    (_gate("@"), _by(_EMAIL, "email")),
    (_gate("http www."), _by(_URL, "url")),
    (
        _gate(
            "street avenue road boulevard lane drive highway parkway terrace square _st_ _st. _st, _ave _rd"
            " blvd _ln hwy pkwy court _way _place box_"
        ),
        _by(_ADDRESS, "address"),
    ),
    (_gate("address"), _by(_ADDRESS_CUE, "address")),
    (
        _gate(
            "hospi infirmary clinic_ clinic. clinic, healthcare health_ center centre _ctr university _group"
            " associates"
        ),
        _hospitals,
    ),
    (_gate("year yr y.o y._o y/o yo_ yo, yo. 9m 9f age"), _ages),
)
"""Words one of which must be in the text, and the search that only then is worth its time."""
