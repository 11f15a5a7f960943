"""What identifies by its form or by the words around it: titles, signatures, numbers, places, great ages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from medvl.preprocess.deid.dates import Span
from medvl.preprocess.deid.words import CLINICAL

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
_P = r"(?:(?:[Vv][ao]n|[Dd](?:e|el|ella|er|en|i|a|os|u)|[Ll][ae]|[AaEe]l|[Bb]in|[Ii]bn|[Tt]e[rn])[ -]){0,2}"
_W = rf"{_P}(?!(?i:{_STOP})\b|X+\b)[A-ZÀ-Þ](?:\w|-(?=[A-ZÀ-Þ])|['’](?=\w\w))+"
_I = r"[A-Z]\b\.?"
_NAME = rf"(?:{_I} ?){{0,2}}{_W}(?: (?:{_I} )?{_W}){{0,2}}"
_LAST_FIRST = rf"{_W}(?: {_W})?, ?{_W}(?: {_I})?"
_NUMBER = r"(?=[A-Za-z-]{0,6}\d)[A-Za-z0-9][A-Za-z0-9/-]{2,24}"

_TITLED = re.compile(
    rf"(?:(?P<bare>DR|MRS)\s{{1,2}}|(?:D(?:[Rr]|octor)|M(?:rs?|s|iss|RS)|Prof(?:essor)?"
    rf"|Nurse|Señora?|Frau|Herr|Mme|Monsieur)\b(?:\.\s{{0,2}}|\s{{1,2}})|(?:MR|MS|MISS|Sra?)\.\s{{1,2}})"
    rf"(?P<name>{_NAME})"
    rf"|(?:Drs|DRS)\b\.? (?P<several>{_NAME}(?:(?:, | and | & |, and ){_NAME}){{0,3}})"
    r"|(?:[Dd]rs?|[Mm]rs?|[Mm]s)(?:\. ?|(?<=[Dd]r) (?!ain\b)|(?<=mrs) )(?P<low>(?!XX)[a-z]{3,}(?:-[a-z]{3,})?)\b"
)
_LOW_STOP = frozenset("the and for was has had who not may can did via per".split())
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
    (?:(?:patient|pt)(?:'s)?_)?name cc (?:performing_)?tech signed
    """
)
_TOLD = re.compile(
    rf"\b(?:discussed with|(?:communicated|relayed|conveyed|telephoned|called|reported|given|faxed|paged) to|"
    rf"notified|spoke (?:to|with)|on behalf of|informed|[Rr]eferred by|^I,|(?:[Tt]he )?[Pp]atient,|[Pp]atient name|"
    rf"(?:[Rr]egards|[Ss]incerely|[Tt]hank you|[Yy]ours \w+),)\s+(?P<name>{_W},? (?:{_I} ?)?{_W}(?: {_W})?)"
    rf"|\b(?:wife|husband|son|daughter|mother|father|brother|sister|spouse|partner|Daughter|Son|Wife|Husband|Mother|Father)"
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
_OWNERS = _any(
    """
    patient pt hospital study exam visit encounter account acct chart case order unit specimen insurance
    policy license member NHS CHI SSN social_security health_card medicare passport personal
    medical_record accession acc record hosp hospital_reg registration reg client client_record
    """
)
_KEYWORD_ID = re.compile(
    rf"\b(?i:MRN|M\.R\.N\.|URN|medical record|accession|"
    rf"{_OWNERS}(?: (?:id|identifier|number|no|num|nr|code|record)\b|(?= ?#))+"
    r"|SSN|SS(?= ?#)|NHS|patient_id|study_id|subject_id|Acc(?=[:#]))"
    rf"\.?[ ]?(?:[:#=-]|is|was)?[ ]?#?[ ]?"
    rf"(?P<id>{_NUMBER}(?:[ ]\d{{2,6}}){{0,3}}|\d\d(?: \d{{1,4}}){{2,4}})(?!\w)"
)
_PHONE = re.compile(
    r"(?:\+\d{1,3}[ .-]?)?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?!\d)(?:,? ?(?:x|ext\.?|extension) ?\d{1,6}\b)?"
    r"|0\d{1,4}(?: \d{2,5}){2,4}(?![\d.])|0\d{2,4}/\d{5,8}(?!\d)|(?P<run>\d{9,20})(?![\w.])"
    r"|\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,5}(?!\d)|(?P<ssn>\d{3}-\d\d-\d{4})(?!\d)"
)
_DATE_RUN = re.compile(r"(?:19|20)\d\d(?:0\d|1[0-2])[0-3]\d(?:[01]\d|2[0-3])[0-5]\d(?:[0-5]\d)?")
_PHONE_GATE = re.compile(r"\d\d[.-]\d{4}|\d-\d\d-\d{4}|\+\d|\d{9}|0\d+[/ ]\d\d")
_LINES = _any(
    "phone telephone tel ph fon telefon pager beeper bleep fax mobile cell cellphone extension ext x-?tension pgr"
    " contact voicemail vm ascom vocera call_back"
)
_KEYWORD_PHONE = re.compile(
    rf"\b(?i:{_LINES}\.?[ ]?(?:number|no\.?|\#|at|is)?[ ]?[:#.]?[ ]?)"
    r"(?P<id>\+?[\d(][\d().-]{0,6}(?:[ ]?[\d().-]{2,5}){0,4}\d)"
    r"(?!\w| ?(?:mm|cm|HU|%|per\b|x\b|French|cells?\b|images?\b))"
)
_EMAIL = re.compile(r"[\w.+-]+(?:@| ?[(\[]at[)\]] ?)[\w-]+(?:\.[\w-]+)+")
_URL = re.compile(
    r"(?:https?://|s?ftp://|file://|www\.|\\\\)[^\s<>()\"\]]*[\w/]"
    r"|[a-z][\w-]*(?:\.[\w-]+)*\.(?:com|org|net|edu|gov|nhs\.uk|local)\b(?:/[^\s<>()\"\]]*[\w/])?"
    r"|(?:10|1[0-9]\d|2[0-5]\d)(?:\.\d{1,3}){3}(?![\d.]*\d)",
    re.IGNORECASE,
)
_UID = re.compile(r"[0-2](?:\.\d+){5,}")
_STREETS = "Street Avenue Road Boulevard Lane Drive Highway Parkway Terrace Square"
_ZIP = r"(?:,? [A-Z]{2})?(?:,? \d{5}(?:-\d{4})?)?"
_ADDRESS = re.compile(
    r"[1-9]\d{0,4}[A-Za-z]?,? (?:(?:[NSEW]\.?|North|South|East|West) )?"
    r"(?:(?:[A-Z][a-z'’]+|\d{1,3}(?:st|nd|rd|th)) ){1,3}"
    rf"{_any(_STREETS + ' St Ave Rd Blvd Ln Hwy Pkwy Court Way Place')}\b\.?"
    rf"(?:,? (?:Apt|Suite|Ste|Unit|#)\.? ?\w{{1,5}})?(?:,? [A-Z][a-z]+(?: [A-Z][a-z]+)?)?{_ZIP}"
    rf"|[1-9]\d{{0,4}} (?:[A-Z]+ ){{1,3}}{_any(_STREETS.upper() + ' BLVD AVE')}\b(?:, [A-Z]+)?{_ZIP}"
    rf"|[1-9]\d{{0,4}} (?:[A-Z]+ ){{1,2}}(?:ST|RD|LN|DR|CT)\b(?:,? [A-Z]+){{1,2}},? \d{{5}}(?:-\d{{4}})?"
    r"|P\.? ?O\.? (?i:Box) \d+|(?i:zip)(?: code)?:? ?\d{5}(?:-\d{4})?"
    r"|[A-ZÄÖÜ]\w+(?:straße|strasse|gasse|allee) \d{1,4}\w?(?:, \d{5} [A-ZÄÖÜ]\w+)?"
    r"|[1-9]\d{0,3},? (?:rue|calle|via) (?:(?:de|du|des|la|del|di) )*[A-Z]\w+"
)
_ADDRESS_CUE = re.compile(
    r"\b(?i:(?:home |street |mailing )?address)(?:\s*:\s*| (?=\d))(?P<id>[^\n;]{4,80}?)(?=\s*(?:$|[\n;]|\.(?:\s|$)))"
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
_CARETS = re.compile(
    r"[A-ZÀ-Þ][\w'’-]+(?: [A-Z][\w'’-]+)?\^[A-ZÀ-Þ][\w'’.-]*(?:\^[\w'’.]*)*|(?P<number>\w*\d{4,}\w*)\^{2,}[\w&^.]*"
)
_BIRTH = re.compile(
    r"\b(?i:DOB|D\.O\.B\.?|(?:date of )?birth ?(?:date|day)?|born(?: on| in)?|geb(?:oren)?(?: am)?)\.?\s*[:=]?\s*"
    r"(?P<date>\d{1,4}[./-]\d{1,2}[./-]\d{2,4}|\d{8}|(?:19|20)\d\d|\d{1,2}[ -][A-Za-z]{3,9}\.?[ ,-]{1,2}\d{2,4}"
    r"|[A-Z][a-z]{2,8}\.? \d{1,2},? \d{2,4})(?![\w])"
)
_OLD = re.compile(
    r"(?P<age>9\d|1[0-4]\d)(?=[- ]?(?i:years?|yrs?|yr\.?)[- ]?"
    r"(?i:old|of[- ]age|male|female|man|woman|lady|gentleman|[MF]\b)"
    r"|[- ]?(?i:y\.? ?o\b|y/o\b|yo[mf]?\b|y[ -]?[mf]?\b|y-o\b|jährig|años\b|ans\b)|[MF]\b|-?(?i:year|yr)s?\b-)"
)
_AGED = re.compile(r"\b(?i:aged?)(?: is|:|=| of)? ?0?(?P<age>9\d|1[0-4]\d)(?![\d+%]|\.\d| ?(?:mm|cm))")

_SPELT = re.compile(
    r"\b(?P<age>(?i:ninety|one hundred)(?:[ -](?i:and )?(?i:one|two|three|four|five|six|seven|eight|nine))?)"
    r"(?=[ -](?i:years?)[ -]olds?)"
)
_WARM = re.compile(r"(?i:temp|fever|febrile|t ?max)")


_OF_WORDS = ("name", "address")
LEAST_DIGITS = 4
"""Of a telephone number or an extension: a cell of 12 mm has none."""


def find_patterns(text: str, low: str) -> Iterator[Span]:
    """Yield what identifies by itself, each with its token.

    Args:
        text: the report.
        low: the report in lower case.
    """
    for gate, find in _FINDERS:
        if any(map(low.__contains__, gate)):
            yield from find(text)


def _by(pattern: re.Pattern[str], kind: str) -> Callable[[str], Iterator[Span]]:
    """Return a finder: the pattern's named group, or all of it, becomes the kind's token."""
    group = next(iter(pattern.groupindex), 0)

    def find(text: str) -> Iterator[Span]:
        for match in pattern.finditer(text):
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


def _titled(text: str) -> Iterator[Span]:
    for match in _TITLED.finditer(text):
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


def _told(text: str) -> Iterator[Span]:
    for match in _TOLD.finditer(text):
        group = "kin" if match["kin"] else "name"
        if not _any_clinical(match[group]):
            yield Span(*match.span(group), "name", "[name]")


def _credentialed(text: str) -> Iterator[Span]:
    for match in _CREDENTIAL.finditer(text):
        name = _NAME_BEFORE.search(text, max(0, match.start() - 60), match.start())
        if name and not _any_clinical(name["name"]):
            yield Span(*name.span("name"), "name", "[name]")


def _any_clinical(name: str) -> bool:
    return any(word in CLINICAL for word in re.findall("[a-z]{3,}", name.lower())) or _is_clinical(name)


def _hospitals(text: str) -> Iterator[Span]:
    for match in _HOUSE.finditer(text):
        name = _HOUSE_NAME.search(text, max(0, match.start() - 80), match.start())
        if name and _is_clinical(name[0]):
            name = None
        if name or re.search(" (?:of|de) ", match[0]):
            yield Span(name.start() if name else match.start(), match.end(), "hospital", "[hospital]")
    for match in _UNIVERSITY.finditer(text):
        yield Span(*match.span(), "hospital", "[hospital]")


def _phones(text: str) -> Iterator[Span]:
    if not _PHONE_GATE.search(text):
        return
    for match in _PHONE.finditer(text):
        if not _inside_word(text, match.start()) and (match["ssn"] or sum(map(str.isdigit, match[0])) >= 8):
            if match["run"] and _DATE_RUN.fullmatch(match["run"]):
                continue
            if match[0][0] == "0" and " " in match[0] and sum(map(str.isdigit, match[0])) < 9:
                continue
            kind = "id" if match["ssn"] or match["run"] else "phone"
            yield Span(*match.span(), kind, f"[{kind}]")


def _uids(text: str) -> Iterator[Span]:
    for match in _UID.finditer(text):
        # Those that the standard defines (1.2.840.10008) name no one.
        if len(match[0]) >= 16 and not match[0].startswith("1.2.840.10008."):
            yield Span(*match.span(), "id", "[id]")


def _carets(text: str) -> Iterator[Span]:
    """Yield what HL7 left in a text: SMITH^JOHN^Q, 123456^^^HOSP."""
    for match in _CARETS.finditer(text):
        kind = "id" if match["number"] else "name"
        if match["number"] or not _is_clinical(match[0]):
            yield Span(*match.span(), kind, f"[{kind}]")


def _births(text: str) -> Iterator[Span]:
    for match in _BIRTH.finditer(text):
        yield Span(*match.span("date"), "date", "[date]")


def _ages(text: str) -> Iterator[Span]:
    for pattern in (_OLD, _AGED, _SPELT):
        for match in pattern.finditer(text):
            before = text[max(0, match.start() - 20) : match.start()]
            if not _inside_word(text, match.start()) and not _WARM.search(before):
                yield Span(*match.span("age"), "age", "90+")


def _gate(words: str) -> tuple[str, ...]:
    """Return words to look for first; ``_`` stands for a blank."""
    return tuple(word.replace("_", " ") for word in words.split())


_FINDERS: tuple[tuple[tuple[str, ...], Callable[[str], Iterator[Span]]], ...] = (
    (_gate("dr mr ms_ ms. miss prof doctor nurse señor sr. sra. frau herr mme monsieur"), _titled),
    (
        _gate(
            "_by_ _by: cc: tech: signed: ogist attending resident fellow dictator consultant ician provider name tionist"
        ),
        _by(_SIGNED, "name"),
    ),
    (_gate("patient: pt: pt. re: cc:"), _by(_PATIENT, "name")),
    (
        _gate(
            "_with_ _to_ notified informed behalf i,_ patient regards sincerely thank yours wife husband son_"
            " daughter mother father brother sister spouse partner referred_by"
        ),
        _told,
    ),
    (_gate("md m.d d.o phd ph.d mbb frc _rn r.n pa-c ,_do ,_pa ,_np ,_rt rra"), _credentialed),
    (
        (
            *_gate(
                "mrn m.r.n urn_ urn: record accession _id_ _id: _id# number _no. _no: patient_no_ case_no_"
            ),
            *_gate("acc: acc# ss# ss_# hosp_no client chart_no_ hospital_no_ # ssn nhs identifier _nr _code"),
            *("patient_id", "study_id", "subject_id"),
        ),
        _by(_KEYWORD_ID, "id"),
    ),
    (("-", ".", "+", "(", " 0", "0", "1", "2"), _phones),
    (
        _gate(
            "ph:_ ph_ fon_ telefon bleep voicemail vm_ ascom vocera call_back phone tel_ tel: tel. pager beeper fax mobile_ cell_ cell: _ext_ _ext. _ext: extension_ tension"
            " pgr contact_"
        ),
        _by(_KEYWORD_PHONE, "phone"),
    ),
    (_gate("@ (at) [at]"), _by(_EMAIL, "email")),
    (_gate(":// www. \\\\ .com .org .net .edu .gov .nhs .local 10. 172. 192."), _by(_URL, "url")),
    (_gate("1.2. 1.3. 2.16. 2.25."), _uids),
    (_gate("^"), _carets),
    (_gate("dob d.o.b birth born geb"), _births),
    (
        _gate(
            "street avenue road boulevard lane drive highway parkway terrace square _st_ _st. _st, _ave _rd"
            " blvd _ln hwy pkwy court _way _place box_ _st_ _rd_ zip straße strasse gasse allee rue_ calle_ via_"
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
    (_gate("year yr 9y 9_y y-o jährig años ans_ y.o y._o y/o yo_ yo, yo. 9m 9f age"), _ages),
)
"""Words one of which must be in the text, and the search that only then is worth its time."""
