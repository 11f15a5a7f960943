"""What identifies by its form or by the words around it: titles, signatures, numbers, places, great ages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from medvl.preprocess.deid.dates import Span
from medvl.preprocess.deid.forms import (
    ADDRESS,
    ADDRESS_CUE,
    AGED,
    BIRTH,
    CARETS,
    DATE_RUN,
    DIGITS,
    EMAIL,
    HOUSE,
    HOUSE_NAME,
    KEYWORD_ID,
    KEYWORD_PHONE,
    OLD,
    PHONE,
    SPELT,
    UID,
    UNIVERSITY,
    URL,
    WARM,
    any_of,
)
from medvl.preprocess.deid.words import CLINICAL

__all__ = ["find_patterns"]


# Words that end a name, or that stand where a name could: the next heading, a department, a sex.
_STOP = any_of(
    r"""
    AND OR AT ON IN FROM TO THE THIS THAT WITH FOR BY OF WAS IS WERE HAS AS VIA PER WHO CT MRI? PET US
    XR CXR A AN HIS HER OUR FINDINGS? IMPRESSION TECHNIQUE COMPARISON INDICATION HISTORY
    EXAM(?:INATION)? REPORT DATE TIME CHEST RADIOLOGY CARDIOLOGY PATHOLOGY DEPARTMENT SERVICE TEAM PHONE
    TELEPHONE MALE FEMALE UNKNOWN NONE NO NOT SUPINE EMERGENCY ONCOLOGY SURGERY PATIENT TECHNOLOGIST
    RADIOLOGIST NEURORADIOLOGY MRN DOB ACCESSION REGARDING DICTATED SIGNED M\.?D D\.?O RN NP PA RT
    PH\.?D
    """
)
_P = r"(?:(?:[Vv][ao]n|[Dd](?:e|el|ella|er|en|i|a|os|u)|[Ll][ae]|[AaEe]l|[Bb]in|[Ii]bn|[Tt]e[rn])[ -]){0,2}"
_W = rf"{_P}(?!(?i:{_STOP})\b|X+\b)[A-ZÀ-Þ](?:\w|-(?=[A-ZÀ-Þ])|['’](?=\w\w))+"
_I = r"[A-Z]\b\.?"
_NAME = rf"(?:{_I} ?){{0,2}}{_W}(?: (?:{_I} )?{_W}){{0,2}}"
_LAST_FIRST = rf"{_W}(?: {_W})?, ?{_W}(?: {_I})?"

_TITLED = re.compile(
    rf"(?:(?P<bare>DR|MRS)\s{{1,2}}|(?:D(?:[Rr]|octor)|M(?:rs?|s|iss|RS)|Prof(?:essor)?"
    rf"|Nurse|Señora?|Frau|Herr|Mme|Monsieur)\b(?:\.\s{{0,2}}|\s{{1,2}})|(?:MR|MS|MISS|Sra?)\.\s{{1,2}})"
    rf"(?P<name>{_NAME})"
    rf"|(?:Drs|DRS)\b\.? (?P<several>{_NAME}(?:(?:, | and | & |, and ){_NAME}){{0,3}})"
    r"|(?:[Dd]rs?|[Mm]rs?|[Mm]s)(?:\. ?|(?<=[Dd]r) (?!ain\b)|(?<=mrs) )"
    r"(?P<low>(?!XX)[a-z]{3,}(?:-[a-z]{3,})?)\b"
)
_LOW_STOP = frozenset("the and for was has had who not may can did via per".split())
_DONE = any_of(
    """
    signed dictated transcribed verified approved interpreted finalized authenticated read reviewed
    reported performed ordered requested prepared attested entered typed scanned
    """
)
_ROLES = any_of(
    """
    radiologist technologist attending(?:_physician|_radiologist)? resident fellow dictator
    transcriptionist consultant
    (?:(?:referring|ordering|requesting|interpreting|reading|attending)_)?(?:physician|provider|clinician)
    (?:(?:patient|pt)(?:'s)?_)?name cc (?:performing_)?tech signed
    """
)
_TOLD = re.compile(
    rf"\b(?:discussed with|(?:communicated|relayed|conveyed|telephoned|called|reported|given|faxed|paged) to|"
    rf"notified|spoke (?:to|with)|on behalf of|informed|[Rr]eferred by|^I,"
    rf"|(?:[Tt]he )?[Pp]atient,|[Pp]atient name|"
    rf"(?:[Rr]egards|[Ss]incerely|[Tt]hank you|[Yy]ours \w+),)\s+(?P<name>{_W},? (?:{_I} ?)?{_W}(?: {_W})?)"
    rf"|\b(?:wife|husband|son|daughter|mother|father|brother|sister|spouse|partner"
    r"|Daughter|Son|Wife|Husband|Mother|Father)"
    rf",? \(?(?P<kin>(?-i:{_W})(?: {_W})?)",
    re.MULTILINE,
)
_SIGNED = re.compile(
    rf"\b(?i:{_DONE}(?: and \w+)?(?: electronically)? by|{_ROLES})(?:\s*:\s*|(?<=by) )(?:(?i:dr)\.? )?"
    rf"(?P<name>{_LAST_FIRST}|{_NAME})"
)
_PATIENT = re.compile(
    rf"\b(?:Patient|PATIENT|Pt|PT|Re|RE|cc|CC)(?:: ?|(?<=Pt)\. )(?P<name>{_LAST_FIRST}|{_W}, {_I}"
    rf"|{_W} (?:{_I} )?{_W})"
)
_CREDENTIAL = re.compile(
    r"[DFMPR](?:\.?D\.?|\.?O\.|h\.?D\.?|BBS|\.B\.B\.S|BBCh|RCR|RCPC|ACR|ACP|RCP|RCS|N\.?|A-C|RA|NP)(?![\w-])"
    r"|(?:(?<=, )(?:DO|RN|PA|NP|RT))(?![\w-])"
)
_NAME_BEFORE = re.compile(rf"(?<!\w)(?P<name>{_NAME}),? $")
Finder = Callable[[str, list[tuple[int, int]]], Iterator[Span]]
_BEFORE, _AFTER = 90, 140
_OF_WORDS = ("name", "address")
LEAST_DIGITS = 4
"""Of a telephone number or an extension: a cell of 12 mm has none."""


def find_patterns(text: str, low: str, words: frozenset[str]) -> Iterator[Span]:
    """Yield what identifies by itself, each with its token.

    Args:
        text: the report.
        low: the report in lower case.
        words: every run of letters in it.
    """
    edges = words | {word[:4] for word in words} | {word[-4:] for word in words}
    for gate, find in _FINDERS:
        likely = [cue for cue, keys in gate if not keys or not edges.isdisjoint(keys)]
        if likely and (windows := _windows(low, likely)):
            yield from find(text, windows)
    yield from _phones(text, [(m.start(), min(m.end() + 20, len(text))) for m in DIGITS.finditer(text)])


def _windows(low: str, cues: list[str]) -> list[tuple[int, int]]:
    """Return the parts of a text around some words, in which alone an expensive pattern is searched."""
    found: list[int] = []
    for word in cues:
        at = low.find(word)
        while at >= 0:
            found.append(at)
            at = low.find(word, at + 1)
    windows: list[tuple[int, int]] = []
    for at in sorted(found):
        start, end = max(0, at - _BEFORE), low.find(" ", at + _AFTER)
        end = len(low) if end < 0 else end
        if windows and start <= windows[-1][1]:
            windows[-1] = windows[-1][0], max(end, windows[-1][1])
        else:
            windows.append((start, end))
    return windows


def _matches(pattern: re.Pattern[str], text: str, windows: list[tuple[int, int]]) -> Iterator[re.Match[str]]:
    for start, end in windows:
        yield from pattern.finditer(text, start, end)


def _by(pattern: re.Pattern[str], kind: str) -> Finder:
    """Return a finder: the pattern's named group, or all of it, becomes the kind's token."""
    group = next(iter(pattern.groupindex), 0)

    def find(text: str, windows: list[tuple[int, int]]) -> Iterator[Span]:
        for match in _matches(pattern, text, windows):
            found = match[group] or ""
            if kind == "phone" and sum(map(str.isdigit, found)) < LEAST_DIGITS:
                continue
            if not found or _inside_word(text, match.start()) or (kind in _OF_WORDS and _is_clinical(found)):
                continue
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


def _titled(text: str, windows: list[tuple[int, int]]) -> Iterator[Span]:
    for match in _matches(_TITLED, text, windows):
        if _inside_word(text, match.start()):
            continue
        if match["low"]:
            if match["low"] not in CLINICAL and match["low"] not in _LOW_STOP:
                yield Span(*match.span("low"), "name", "[name]")
            continue
        group = "name" if match["name"] else "several"
        careful = match["bare"] or match[0][:2].lower() in ("nu", "pr", "mi")
        if not (careful and _is_clinical(match[group])):
            yield Span(*match.span(group), "name", "[name]")


def _is_clinical(name: str) -> bool:
    """Whether what could be a name or a street is made of words that neither is made of."""
    words = re.findall("[a-z]+", name.lower())
    return all(word in CLINICAL or word in _LANES or len(word) < 2 for word in words)


_LANES = frozenset("way place court lane drive square".split())


def _told(text: str, windows: list[tuple[int, int]]) -> Iterator[Span]:
    for match in _matches(_TOLD, text, windows):
        group = "kin" if match["kin"] else "name"
        if not _any_clinical(match[group]):
            yield Span(*match.span(group), "name", "[name]")


def _credentialed(text: str, windows: list[tuple[int, int]]) -> Iterator[Span]:
    for match in _matches(_CREDENTIAL, text, windows):
        name = _NAME_BEFORE.search(text, max(0, match.start() - 60), match.start())
        if name and not _any_clinical(name["name"]):
            yield Span(*name.span("name"), "name", "[name]")


def _any_clinical(name: str) -> bool:
    return any(word in CLINICAL for word in re.findall("[a-z]{3,}", name.lower())) or _is_clinical(name)


def _hospitals(text: str, windows: list[tuple[int, int]]) -> Iterator[Span]:
    for match in _matches(HOUSE, text, windows):
        name = HOUSE_NAME.search(text, max(0, match.start() - 80), match.start())
        if name and _is_clinical(name[0]):
            name = None
        if name or re.search(" (?:of|de) ", match[0]):
            yield Span(name.start() if name else match.start(), match.end(), "hospital", "[hospital]")
    for match in _matches(UNIVERSITY, text, windows):
        yield Span(*match.span(), "hospital", "[hospital]")


def _phones(text: str, windows: list[tuple[int, int]]) -> Iterator[Span]:
    for match in _matches(PHONE, text, windows):
        if not _inside_word(text, match.start()) and (match["ssn"] or sum(map(str.isdigit, match[0])) >= 8):
            if match["run"] and DATE_RUN.fullmatch(match["run"]):
                continue
            if match[0][0] == "0" and " " in match[0] and sum(map(str.isdigit, match[0])) < 9:
                continue
            kind = "id" if match["ssn"] or match["run"] else "phone"
            yield Span(*match.span(), kind, f"[{kind}]")


def _uids(text: str, windows: list[tuple[int, int]]) -> Iterator[Span]:
    for match in _matches(UID, text, windows):
        # Those that the standard defines (1.2.840.10008) name no one.
        if len(match[0]) >= 16 and not match[0].startswith("1.2.840.10008."):
            yield Span(*match.span(), "id", "[id]")


def _carets(text: str, windows: list[tuple[int, int]]) -> Iterator[Span]:
    """Yield what HL7 left in a text: SMITH^JOHN^Q, 123456^^^HOSP."""
    for match in _matches(CARETS, text, windows):
        kind = "id" if match["number"] else "name"
        if match["number"] or not _is_clinical(match[0]):
            yield Span(*match.span(), kind, f"[{kind}]")


def _births(text: str, windows: list[tuple[int, int]]) -> Iterator[Span]:
    for match in _matches(BIRTH, text, windows):
        yield Span(*match.span("date"), "date", "[date]")


def _ages(text: str, windows: list[tuple[int, int]]) -> Iterator[Span]:
    for pattern in (OLD, AGED, SPELT):
        for match in _matches(pattern, text, windows):
            before = text[max(0, match.start() - 20) : match.start()]
            if not _inside_word(text, match.start()) and not WARM.search(before):
                yield Span(*match.span("age"), "age", "90+")


Gate = tuple[tuple[str, frozenset[str]], ...]
_LETTERS = re.compile(r"[^\W\d_]+")


def _gate(cues: str) -> Gate:
    """Return cues, ``_`` for a blank, each with the beginning or end that a word of its text must have.

    To ask for the beginnings and ends of all words at once is cheaper than to look for each cue.
    """
    found = []
    for cue in cues.split():
        core = max(_LETTERS.findall(cue.replace("_", " ")), key=len, default="")
        keys = {core} if len(core) < 4 else {core[:4], core[-4:]}
        found.append((cue.replace("_", " "), frozenset(keys) if len(core) > 1 else frozenset()))
    return tuple(found)


_FINDERS: tuple[tuple[Gate, Finder], ...] = (
    (
        _gate(
            "dr_ dr. drs mr_ mr. mrs ms_ ms. miss_ miss. prof. professor doctor_ nurse_ señor sr. sra. frau_"
            " herr_ mme_ monsieur"
        ),
        _titled,
    ),
    (
        _gate(
            "_by_ _by: cc: tech: signed: ogist: attending: resident: fellow: dictator: consultant: ician:"
            " provider: name: tionist: resident_: physician_: ogist_:"
        ),
        _by(_SIGNED, "name"),
    ),
    (_gate("patient: pt: pt. re: cc:"), _by(_PATIENT, "name")),
    (
        _gate(
            "discussed_with cated_to relayed_to conveyed_to phoned_to called_to reported_to given_to faxed_to"
            " paged_to spoke_ notified informed behalf i,_ patient,_ patient_name regards sincerely thank"
            " yours wife husband son_ daughter mother father brother sister spouse partner referred_by"
        ),
        _told,
    ),
    (
        _gate(
            "md m.d d.o do_ phd ph.d mbbs mbbch m.b.b frcr frcpc frcp frcs facr facp mrcp _rn r.n pa-c ,_do"
            " ,_pa ,_np ,_rt rra dnp fnp"
        ),
        _credentialed,
    ),
    (
        _gate(
            "mrn m.r.n urn_ urn: medical_record accession _id_ _id: _id# number _no. _no:"
            " patient_no_ case_no_"
            " hospital_no_ hosp_no_ chart_no_ study_no_ exam_no_ unit_no_ order_no_ account_no_ acct_no_"
            " specimen_no_ _nr _num_ acc: acc# ss# ss_# # ssn nhs identifier _code patient_record"
            " patient_id study_id subject_id acc_record"
        ),
        _by(KEYWORD_ID, "id"),
    ),
    (
        _gate(
            "ph:_ ph_ fon_ telefon bleep voicemail vm_ ascom vocera call_back phone tel_"
            " tel: tel. pager beeper"
            " fax mobile_ cell_ cell: ext_ ext. ext: extension_ tension_ pgr contact_"
        ),
        _by(KEYWORD_PHONE, "phone"),
    ),
    (_gate("@ (at) [at]"), _by(EMAIL, "email")),
    (_gate(":// www. \\\\ .com .org .net .edu .gov .nhs .local 10. 172. 192."), _by(URL, "url")),
    (_gate("1.2. 1.3. 2.16. 2.25."), _uids),
    (_gate("^"), _carets),
    (_gate("dob d.o.b birth birthday born geb geboren"), _births),
    (
        _gate(
            "street avenue road boulevard lane drive highway parkway terrace square _st_ _st. _st, _ave _rd"
            " blvd _ln hwy pkwy court _way _place box_ zip straße strasse gasse allee rue_ calle_ via_"
        ),
        _by(ADDRESS, "address"),
    ),
    (_gate("address"), _by(ADDRESS_CUE, "address")),
    (
        _gate(
            "hospi infirmary clinic_ clinic. clinic, clinic healthcare health_ center centre _ctr university"
            " _group associates"
        ),
        _hospitals,
    ),
    (
        _gate(
            "year yr yrs y-o jährig años ans_ y.o y._o y/o yo_ yo, yo. 9m 9f 9y 0f 1f 2f 3f"
            " age_ age: age= aged"
        ),
        _ages,
    ),
)
"""Cues one of which must be in the text, and the search that only around them is worth its time."""
