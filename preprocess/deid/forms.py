"""The forms of numbers, addresses, places, birth dates and great ages in reports."""

from __future__ import annotations

import re

__all__ = [
    "ADDRESS",
    "ADDRESS_CUE",
    "AGED",
    "BIRTH",
    "CARETS",
    "DATE_RUN",
    "DIGITS",
    "EMAIL",
    "HOUSE",
    "HOUSE_NAME",
    "KEYWORD_ID",
    "KEYWORD_PHONE",
    "OLD",
    "PHONE",
    "SPELT",
    "UID",
    "UNIVERSITY",
    "URL",
    "WARM",
    "any_of",
]


def any_of(words: str) -> str:
    """Return a pattern that matches one of the words; ``_`` stands for a blank."""
    return "(?:" + "|".join(word.replace("_", "[ ]") for word in words.split()) + ")"


_NUMBER = r"(?=[A-Za-z-]{0,6}\d)[A-Za-z0-9][A-Za-z0-9/-]{2,24}"
_OWNERS = any_of(
    """
    patient pt hospital study exam visit encounter account acct chart case order unit specimen insurance
    policy license member NHS CHI SSN social_security health_card medicare passport personal
    medical_record accession acc record hosp hospital_reg registration reg client client_record
    """
)
KEYWORD_ID = re.compile(
    rf"\b(?i:MRN|M\.R\.N\.|URN|medical record|accession|"
    rf"{_OWNERS}(?: (?:id|identifier|number|no|num|nr|code|record)\b|(?= ?#))+"
    r"|SSN|SS(?= ?#)|NHS|patient_id|study_id|subject_id|Acc(?=[:#]))"
    rf"\.?[ ]?(?:[:#=-]|is|was)?[ ]?#?[ ]?"
    rf"(?P<id>{_NUMBER}(?:[ ]\d{{2,6}}){{0,3}}|\d\d(?: \d{{1,4}}){{2,4}})(?!\w)"
)
PHONE = re.compile(
    r"(?:\+\d{1,3}[ .-]?)?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?!\d)"
    r"(?:,? ?(?:x|ext\.?|extension) ?\d{1,6}\b)?"
    r"|0\d{1,4}(?: \d{2,5}){2,4}(?![\d.])|0\d{2,4}/\d{5,8}(?!\d)|(?P<run>\d{9,20})(?![\w.])"
    r"|\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,5}(?!\d)|(?P<ssn>\d{3}-\d\d-\d{4})(?!\d)"
)
DATE_RUN = re.compile(r"(?:19|20)\d\d(?:0\d|1[0-2])[0-3]\d(?:[01]\d|2[0-3])[0-5]\d(?:[0-5]\d)?")
DIGITS = re.compile(r"[\d+(][\d() ./+-]{7,}")
"""What may hold a telephone number."""
_LINES = any_of(
    "phone telephone tel ph fon telefon pager beeper bleep fax mobile cell cellphone extension ext x-?tension"
    " pgr contact voicemail vm ascom vocera call_back"
)
KEYWORD_PHONE = re.compile(
    rf"\b(?i:{_LINES}\.?[ ]?(?:number|no\.?|\#|at|is)?[ ]?[:#.]?[ ]?)"
    r"(?P<id>\+?[\d(][\d().-]{0,6}(?:[ ]?[\d().-]{2,5}){0,4}\d)"
    r"(?!\w| ?(?:mm|cm|HU|%|per\b|x\b|French|cells?\b|images?\b))"
)
EMAIL = re.compile(r"[\w.+-]+(?:@| ?[(\[]at[)\]] ?)[\w-]+(?:\.[\w-]+)+")
URL = re.compile(
    r"(?:https?://|s?ftp://|file://|www\.|\\\\)[^\s<>()\"\]]*[\w/]"
    r"|[a-z][\w-]*(?:\.[\w-]+)*\.(?:com|org|net|edu|gov|nhs\.uk|local)\b(?:/[^\s<>()\"\]]*[\w/])?"
    r"|(?:10|1[0-9]\d|2[0-5]\d)(?:\.\d{1,3}){3}(?![\d.]*\d)",
    re.IGNORECASE,
)
UID = re.compile(r"[0-2](?:\.\d+){5,}")
_STREETS = "Street Avenue Road Boulevard Lane Drive Highway Parkway Terrace Square"
_ZIP = r"(?:,? [A-Z]{2})?(?:,? \d{5}(?:-\d{4})?)?"
ADDRESS = re.compile(
    r"[1-9]\d{0,4}[A-Za-z]?,? (?:(?:[NSEW]\.?|North|South|East|West) )?"
    r"(?:(?:[A-Z][a-z'’]+|\d{1,3}(?:st|nd|rd|th)) ){1,3}"
    rf"{any_of(_STREETS + ' St Ave Rd Blvd Ln Hwy Pkwy Court Way Place')}\b\.?"
    rf"(?:,? (?:Apt|Suite|Ste|Unit|#)\.? ?\w{{1,5}})?(?:,? [A-Z][a-z]+(?: [A-Z][a-z]+)?)?{_ZIP}"
    rf"|[1-9]\d{{0,4}} (?:[A-Z]+ ){{1,3}}{any_of(_STREETS.upper() + ' BLVD AVE')}\b(?:, [A-Z]+)?{_ZIP}"
    rf"|[1-9]\d{{0,4}} (?:[A-Z]+ ){{1,2}}(?:ST|RD|LN|DR|CT)\b(?:,? [A-Z]+){{1,2}},? \d{{5}}(?:-\d{{4}})?"
    r"|P\.? ?O\.? (?i:Box) \d+|(?i:zip)(?: code)?:? ?\d{5}(?:-\d{4})?"
    r"|[A-ZÄÖÜ]\w+(?:straße|strasse|gasse|allee) \d{1,4}\w?(?:, \d{5} [A-ZÄÖÜ]\w+)?"
    r"|[1-9]\d{0,3},? (?:rue|calle|via) (?:(?:de|du|des|la|del|di) )*[A-Z]\w+"
)
ADDRESS_CUE = re.compile(
    r"\b(?i:(?:home |street |mailing )?address)(?:\s*:\s*| (?=\d))"
    r"(?P<id>[^\n;]{4,80}?)(?=\s*(?:$|[\n;]|\.(?:\s|$)))"
)
# Words before "hospital" or "clinic" that name none: the outside hospital, the chest clinic.
_GENERIC = any_of(
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
_SORTS = any_of(
    "general university regional community memorial children's county medical teaching veterans? district"
    " city health cancer care imaging"
)
_HOUSES = any_of(
    """
    hospitals? infirmary clinic hospice healthcare health_system
    (?:medical|med|health|cancer|imaging|radiology)_(?:centers?|centres?|ctr|group|associates)
    """
)
HOUSE = re.compile(rf"\b(?i:{_HOUSES})\b(?: (?:of|de)(?: {_H}){{1,3}})?")
HOUSE_NAME = re.compile(rf"(?<![\w'’-])(?:{_H} (?:(?:of|and|&|for) )?){{1,4}}(?:(?i:{_SORTS}) ){{0,3}}$")
UNIVERSITY = re.compile(rf"[Uu](?i:niversity) of (?:{_H})(?: {_H}){{0,2}}")
CARETS = re.compile(
    r"[A-ZÀ-Þ][\w'’-]+(?: [A-Z][\w'’-]+)?\^[A-ZÀ-Þ][\w'’.-]*(?:\^[\w'’.]*)*"
    r"|(?P<number>\w*\d{4,}\w*)\^{2,}[\w&^.]*"
)
BIRTH = re.compile(
    r"\b(?i:DOB|D\.O\.B\.?|(?:date of )?birth ?(?:date|day)?|born(?: on| in)?"
    r"|geb(?:oren)?(?: am)?)\.?\s*[:=]?\s*"
    r"(?P<date>\d{1,4}[./-]\d{1,2}[./-]\d{2,4}|\d{8}|(?:19|20)\d\d"
    r"|\d{1,2}[ -][A-Za-z]{3,9}\.?[ ,-]{1,2}\d{2,4}"
    r"|[A-Z][a-z]{2,8}\.? \d{1,2},? \d{2,4})(?![\w])"
)
OLD = re.compile(
    r"(?P<age>9\d|1[0-4]\d)(?=[- ]?(?i:years?|yrs?|yr\.?)[- ]?"
    r"(?i:old|of[- ]age|male|female|man|woman|lady|gentleman|[MF]\b)"
    r"|[- ]?(?i:y\.? ?o\b|y/o\b|yo[mf]?\b|y[ -]?[mf]?\b|y-o\b|jährig|años\b|ans\b)"
    r"|[MF]\b|-?(?i:year|yr)s?\b-)"
)
AGED = re.compile(r"\b(?i:aged?)(?: is|:|=| of)? ?0?(?P<age>9\d|1[0-4]\d)(?![\d+%]|\.\d| ?(?:mm|cm))")

SPELT = re.compile(
    r"\b(?P<age>(?i:ninety|one hundred)(?:[ -](?i:and )?(?i:one|two|three|four|five|six|seven|eight|nine))?)"
    r"(?=[ -](?i:years?)[ -]olds?)"
)
WARM = re.compile(r"(?i:temp|fever|febrile|t ?max)")
