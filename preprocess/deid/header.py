"""A DICOM data set made anonymous in place, by the table of PS3.15 and one key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as ItemSequence
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, UID_dictionary

from medvl.errors import IncompleteDicom
from medvl.preprocess.deid.profile import DEFAULT, EDITION, Action, Profile
from medvl.preprocess.deid.text import deidentify_text
from medvl.preprocess.deid.values import cap_age, dummy, move_date
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.version import VERSION

__all__ = [
    "Actions",
    "clean_dataset",
    "elements_of",
    "file_meta",
    "identity_of",
    "set_pixel_flags",
    "strings_of",
]

PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
FREE_TEXT = frozenset({"PN", "LT", "ST", "UT", "UC", "UR", "UN", "AE"})
"""Outside the table these are taken out: anybody may have written anything into them."""
KEPT = frozenset({"LongCodeValue", "URNCodeValue"})
"""Code values that are too long for SH; without them a coded entry says nothing."""
CODED = frozenset(
    {
        "CodeValue",
        "CodingSchemeVersion",
        "ContextGroupLocalVersion",
        "ContextGroupVersion",
        "SpecificCharacterSet",
    }
)
"""Numbers of vocabularies, some of which look like dates."""
BYTES = frozenset({"ICCProfile", "WaveformData"})
"""OB outside the table that an image needs."""
SEARCHED = frozenset({"LO", "SH", "CS", "DS", "IS", "UC", "UR"})
MAX_CHARACTERS = {"SH": 16, "LO": 64}


@dataclass
class Actions:
    """What was done, counted by attribute and action; it names no value.

    Attributes:
        taken: tag with keyword to action to how often; private elements are one entry.
        words: kinds of words that were replaced in texts, with their numbers.
    """

    taken: dict[str, Counter[str]] = field(default_factory=dict)
    words: Counter[str] = field(default_factory=Counter)

    def add(self, tag: int, action: str) -> None:
        """Count one action."""
        name = "(gggg,eeee) private"
        if not tag >> 16 & 1:
            name = f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword_for_tag(tag)}".rstrip()
        self.taken.setdefault(name, Counter())[action] += 1

    def update(self, other: Actions) -> None:
        """Add the counts of another file."""
        for name, counts in other.taken.items():
            self.taken.setdefault(name, Counter()).update(counts)
        self.words.update(other.words)


def clean_dataset(
    dataset: Dataset,
    *,
    ids: Pseudonyms,
    patient: str,
    profile: Profile = DEFAULT,
    names: Sequence[str] = (),
    numbers: Sequence[str] = (),
) -> Actions:
    """Apply the profile to a data set and everything nested in it, in place, and set its flags.

    Elements that the table names follow the table. Of the others, private ones, whole curve and overlay
    groups (50xx, 60xx), elements unknown to the dictionary, and those of a VR that holds free text (PN, LT,
    ST, UT, UC, UR, UN, AE) or unspecified bytes (OB) are taken out; dates move, UIDs that no standard defines
    are replaced, short texts are searched for the names and ids that the data set itself states.

    Args:
        dataset: without file meta information.
        ids: keyed pseudonyms; one key joins all files of a patient.
        patient: the identifier whose pseudonym becomes PatientID and PatientName; its days move the dates.
        profile: the table with the options that are on.
        names: of people that other files of the patient state, to be looked for in this one's texts.
        numbers: the same of identifiers.

    Returns:
        What was done.

    Examples:
        >>> from pydicom import examples
        >>> dataset = examples.ct
        >>> clean_dataset(dataset, ids=Pseudonyms(bytes(32)), patient="1CT1").words
        Counter()
        >>> str(dataset.PatientName), dataset.PatientIdentityRemoved, dataset.PatientBirthDate
        ('2f2ad6084a7a2c3b3a00', 'YES', None)

    Source: PS3.15 E.1.1 and Table E.1-1.
    """
    own_names, own_numbers = identity_of(dataset)
    names = tuple(dict.fromkeys((*own_names, *names)))
    numbers = tuple(dict.fromkeys((*own_numbers, *numbers)))
    cleaner = _Cleaner(ids, patient, ids.shift_days(patient), profile, names, numbers, Actions())
    cleaner.clean(dataset)
    pseudonym = ids.patient(patient)
    dataset.PatientName = dataset.PatientID = pseudonym
    dataset.PatientIdentityRemoved = "YES"  # PS3.3 C.7.1.1
    dataset.DeidentificationMethod = f"medvl {VERSION}, {EDITION}"
    dataset.DeidentificationMethodCodeSequence = [_code(*code) for code in profile.codes()]
    # PS3.3 C.12.1: what became of the dates
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if "dates" in profile.options else "REMOVED"
    return cleaner.actions


def set_pixel_flags(dataset: Dataset, *, looked: bool, text_left: bool) -> None:
    """Say in a cleaned data set what became of text that is burned into its pixels.

    Args:
        dataset: after :func:`clean_dataset`.
        looked: whether the pixels were searched; else the flag stays as the source had it.
        text_left: whether text that was found is still there.
    """
    if not looked:
        return
    dataset.BurnedInAnnotation = "YES" if text_left else "NO"
    if not text_left:
        dataset.DeidentificationMethodCodeSequence.append(_code("113101", "Clean Pixel Data Option"))


def file_meta(dataset: Dataset, *, transfer_syntax: str) -> FileMetaDataset:
    """Return new file meta information: nothing of the old one but the transfer syntax passes through.

    Raises:
        IncompleteDicom: the data set has no SOP class or instance UID, which a Part 10 file must name.
    """
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not dataset.get(keyword):
            raise IncompleteDicom(f"the header lacks {keyword}, which a DICOM file must have.")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    meta.ImplementationVersionName = "MEDVL"
    return meta


def identity_of(dataset: Dataset) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return all person names and all identifiers that a data set states, nested ones too."""
    names: dict[str, None] = {}
    numbers: dict[str, None] = {}
    for element in elements_of(dataset):
        if element.VR == "PN":
            names.update(dict.fromkeys(strings_of(element.value)))
        elif element.keyword in _NUMBERS:
            numbers.update(dict.fromkeys(strings_of(element.value)))
        elif element.keyword == "InstitutionName":  # one word of it may be any word
            numbers.update(dict.fromkeys(name for name in strings_of(element.value) if " " in name))
    return tuple(name for name in names if name), tuple(number for number in numbers if number)


_NUMBERS = frozenset(
    {
        "AccessionNumber",
        "AdmissionID",
        "DeviceSerialNumber",
        "FillerOrderNumberImagingServiceRequest",
        "OtherPatientIDs",
        "PatientAddress",
        "PatientID",
        "PatientTelephoneNumbers",
        "PerformedProcedureStepID",
        "PlacerOrderNumberImagingServiceRequest",
        "RequestedProcedureID",
        "ScheduledProcedureStepID",
        "ServiceEpisodeID",
        "StudyID",
    }
)


def elements_of(dataset: Dataset) -> Iterator[DataElement]:
    """Yield every readable element of a data set and of its sequences, without the sequences themselves."""
    for tag in dataset.keys():
        element = _read(dataset, tag)
        if element is None:
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from elements_of(item)
        else:
            yield element


def _read(dataset: Dataset, tag: int) -> DataElement | None:
    try:
        return dataset[tag]
    except Exception:  # noqa: BLE001 - pydicom converts on access, and a converter may raise anything
        return None


def strings_of(value: Any) -> list[str]:
    """Return the values of an element as stripped strings."""
    if value is None:
        return []
    many = value if isinstance(value, (MultiValue, list, tuple)) else [value]  # a person's name iterates too
    return [str(part).strip("\0 ") for part in many]


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


@dataclass
class _Cleaner:
    """The walk through one data set."""

    ids: Pseudonyms
    patient: str
    days: int
    profile: Profile
    names: tuple[str, ...]
    numbers: tuple[str, ...]
    actions: Actions

    def clean(self, dataset: Dataset, *, nested: bool = False) -> None:
        """Clean a data set or an item."""
        for tag in list(dataset.keys()):
            if tag in PIXELS and not nested:
                continue
            # Pixels of an item (an icon, a page of a print) are a picture that nobody searched for writing.
            if tag.is_private or tag.element == 0 or tag.group >> 8 in (0x50, 0x60) or tag in PIXELS:
                self._remove(dataset, tag)
                continue
            element = _read(dataset, tag)
            if element is None:
                self._remove(dataset, tag)
            else:
                self._element(dataset, element)

    def _element(self, dataset: Dataset, element: DataElement) -> None:
        if element.keyword == "PatientAge" and "patient" in self.profile.options:
            self._set(element, "cap", cap_age(_first(element)))
        elif element.keyword in ("PatientID", "PatientName") and _first(element):
            self._set(element, "pseudonym", self.ids.patient(self.patient))
        elif element.keyword == "AccessionNumber" and _first(element):
            # The table says Z, which allows a dummy value (E.1.1): this one still joins a table's rows.
            self._set(element, "pseudonym", self.ids.accession(_first(element)))
        else:
            action = self.profile.action(element.tag, vr=element.VR) or self._unlisted(element)
            self._apply(dataset, element, action)

    def _unlisted(self, element: DataElement) -> Action:
        """Say what happens to an element that the table does not name."""
        vr, keyword = element.VR, element.keyword
        if not dictionary_has_tag(element.tag) or element.tag.group <= 4:
            return "remove"  # commands, file meta information and directories have no place in a data set
        if keyword == "TextValue" and "content" in self.profile.options:  # the words of a structured report
            return "clean"
        if vr == "SQ":
            return "clean"
        if vr in ("DA", "DT") and keyword not in CODED:
            return "shift" if "dates" in self.profile.options else "dummy"
        if vr == "UI":
            return "keep" if _defines_class(keyword) else "uid"
        if (vr in FREE_TEXT and keyword not in KEPT) or (vr == "OB" and keyword not in BYTES):
            return "remove"
        if vr == "AS":
            return "clean"
        return "clean" if vr in SEARCHED and keyword not in CODED else "keep"

    def _apply(self, dataset: Dataset, element: DataElement, action: Action) -> None:
        if action == "remove":
            self._remove(dataset, element.tag)
        elif action == "empty":
            self._set(element, "empty", ItemSequence() if element.VR == "SQ" else None)
        elif element.VR == "SQ":
            self._items(element, action)
        elif action == "uid" or (action == "dummy" and element.VR == "UI"):
            self._uids(element)
        elif action == "dummy":
            self._set(element, "dummy", dummy(element.VR))
        elif action == "shift":
            self._shift(element)
        elif action == "clean":
            self._words(dataset, element)

    def _items(self, element: DataElement, action: Action) -> None:
        for item in element.value:
            if action == "dummy":
                self._fill(item)
            else:
                self.clean(item, nested=True)
        if action == "dummy":
            self.actions.add(element.tag, "dummy")

    def _fill(self, item: Dataset) -> None:
        """Keep the shape of an item and replace all that it says."""
        for tag in list(item.keys()):
            element = _read(item, tag)
            if element is None or tag.is_private or not dictionary_has_tag(tag) or tag.element == 0:
                self._remove(item, tag)
            elif element.VR == "SQ":
                for nested in element.value:
                    self._fill(nested)
            elif element.VR == "UI":
                if not _defines_class(element.keyword):
                    self._uids(element)
            else:
                element.value = dummy(element.VR)

    def _uids(self, element: DataElement) -> None:
        if element.VR != "UI":
            return
        before = strings_of(element.value)
        # A UID that the standard defines (a frame of reference of an atlas, say) identifies nobody.
        after = [uid if uid in UID_dictionary or not uid else self.ids.uid(uid) for uid in before]
        if after != before:
            self._set(element, "uid", after if len(after) > 1 else after[0])

    def _shift(self, element: DataElement) -> None:
        values = strings_of(element.value)
        moved = [move_date(value, days=self.days) if value else "" for value in values]
        if any(moved):
            self._set(element, "shift", moved if len(moved) > 1 else moved[0])
        elif any(values):  # no date that could be moved, so nobody knows what it says
            self._set(element, "empty", None)

    def _words(self, dataset: Dataset, element: DataElement) -> None:
        if element.VR == "AS":
            return self._set(element, "cap", cap_age(_first(element)))
        values = strings_of(element.value)
        cleaned: list[str] = []
        for value in values:
            text, counts = deidentify_text(value, names=self.names, ids=self.numbers, shift_days=self.days)
            self.actions.words.update(counts)
            cleaned.append(text[: MAX_CHARACTERS.get(element.VR)])
        if cleaned == values:
            return None
        if element.VR in ("CS", "DS", "IS", "AE"):  # a token is no value of these
            return self._remove(dataset, element.tag)
        return self._set(element, "clean", cleaned if len(cleaned) > 1 else cleaned[0])

    def _set(self, element: DataElement, action: str, value: Any) -> None:
        element.value = value
        self.actions.add(element.tag, action)

    def _remove(self, dataset: Dataset, tag: int) -> None:
        del dataset[tag]
        self.actions.add(tag, "remove")


def _first(element: DataElement) -> str:
    return "\\".join(strings_of(element.value)).strip()


def _defines_class(keyword: str) -> bool:
    return keyword.endswith(("SOPClassUID", "TransferSyntaxUID"))
