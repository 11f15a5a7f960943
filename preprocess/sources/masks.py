"""Which files of a source are masks of volumes, what their structures are called, and whose they are."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medvl.errors import BadTable, InputError, UsageError, file_token
from medvl.preprocess.sources.columns import plain
from medvl.preprocess.sources.discovery import TABLE_SUFFIXES, SourceFile, discover
from medvl.preprocess.sources.names import path_parts
from medvl.preprocess.sources.rows import Unpaired
from medvl.preprocess.sources.tables import read_table
from medvl.preprocess.structures import TOTAL, Structures
from medvl.preprocess.structures_masks import Mask, Structure
from medvl.preprocess.structures_seg import Segmentation

__all__ = ["FOLDERS", "Masks", "find_masks"]

FOLDERS = frozenset("mask masks segmentation segmentations labelstr labelsts structures".split())
"""Names of folders that hold masks."""

_ENDINGS = re.compile(
    r"[ _.\-](?:seg|segs|segmentations?|dseg|masks?|labels?|labelmap|structures|total|organs)$",
    re.I,
)
_NAMING = ("labels", "structures", "dataset")
"""Stems of files, below a folder of masks, that name the numbers of all label maps beside and below them."""
_NAMING_SUFFIXES = (".yaml", ".yml", ".json", ".csv", ".tsv", ".txt")
_WORDS = r"""["']?([^"'#:]+?)["']?"""
_LINE = re.compile(rf"""\s*(?:["']?(\d+)["']?[:=\t ,]\s*{_WORDS}|{_WORDS}\s*[:=]\s*(\d+))\s*(?:\#.*)?""")
"""``7: heart`` or ``heart: 7``, quoted or not."""
_NUMBERS = ("id", "number", "label", "labelid", "labelvalue", "value", "index", "class", "classid")
_NAMES = ("structure", "name", "labelname", "organ", "region", "classname", "label", "class", "text")
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class Place:
    """Where a mask counts.

    Attributes:
        within: the folder below which its volume lies; "" for any.
        under: folders between it, or the folder of masks, and the mask; volumes may lie in folders alike.
    """

    within: str = ""
    under: str = ""

    def mirrors(self, folder: str) -> bool:
        """Whether a volume of this folder lies just as the mask does."""
        return folder == self.within or bool(self.under and f"{folder}/".endswith(f"/{self.under}/"))

    def holds(self, folder: str) -> bool:
        """Whether a folder is ``within`` or lies below it."""
        return not self.within or f"{folder}/".startswith(f"{self.within}/")


_ANYWHERE = Place()


@dataclass
class Masks:
    """The masks of a source under the keys of their volumes.

    Attributes:
        keyed: SeriesInstanceUID, StudyInstanceUID or stem of a volume → where its masks count → mask. Each
            patient's folder may hold a ``ct.nii.gz`` and a ``ct_seg.nii.gz``, so a stem alone is no key.
        beside: folder → mask of the only volume in it.
        segmentations: DICOM segmentations with what their headers say, for other series of their study.
        taken: files that are masks or name their structures, and so neither images nor tables.
        notes: structures that are not known, numbers that were guessed.
    """

    keyed: dict[str, dict[Place, Mask]] = field(default_factory=dict)
    beside: dict[str, Mask] = field(default_factory=dict)
    segmentations: list[tuple[Mask, Segmentation]] = field(default_factory=list)
    taken: set[Path] = field(default_factory=set)
    unpaired: list[Unpaired] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    used: set[Path] = field(default_factory=set)

    def add(
        self, keys: Iterable[str], mask: Mask, *, place: Place = _ANYWHERE, beside: str | None = None
    ) -> None:
        """Take a mask under its keys, unless another one of that place has any of them."""
        keys = [key for key in keys if key]
        if any(place in self.keyed.get(key, {}) for key in keys):
            self.unpaired.append(Unpaired("second_mask", file_token(mask.path), path=mask.path))
            return
        for key in keys:
            self.keyed.setdefault(key, {})[place] = mask
        if beside is not None:
            self.beside[beside] = mask

    def find(
        self,
        uids: Sequence[str],
        stem: str,
        *,
        folder: str,
        namesakes: Sequence[str] = (),
        alone: bool = False,
    ) -> Mask | None:
        """Return the mask of a volume: by its series, its name, its study, or as the only one in a folder.

        Args:
            uids: of series and study, or other names that no other volume has by chance.
            stem: its file's name.
            folder: of its file.
            namesakes: folders of the other volumes with that stem.
            alone: whether it is the only volume of its folder that has a name of its own.
        """
        series, *others = uids
        found = self._nearest(series, folder)
        found = found or self._nearest(stem, folder, namesakes)
        found = found or next((mask for key in others if (mask := self._nearest(key, folder))), None)
        found = found or (self.beside.get(folder) if alone else None)
        if found is not None:
            self.used.add(found.path)
        return found

    def _nearest(self, key: str, folder: str, namesakes: Sequence[str] = ()) -> Mask | None:
        """Return the mask under a key that lies nearest; None rather than that of another volume."""
        places = [place for place in self.keyed.get(key, {}) if place.holds(folder)]
        places = [
            place
            for place in places
            if place.mirrors(folder) or not any(place.holds(other) for other in namesakes)
        ]
        mirrored = [place for place in places if place.mirrors(folder)]
        nearest = max(mirrored or places, key=lambda place: len(place.within), default=None)
        return None if nearest is None else self.keyed[key][nearest]

    def unused(self) -> list[Unpaired]:
        """Return an entry for each mask that no volume asked for."""
        paths = {mask.path for mask in self.every()} - self.used
        return [Unpaired("mask_without_volume", file_token(path), path=path) for path in sorted(paths)]

    def every(self) -> list[Mask]:
        """Return all masks, some of them more than once."""
        keyed = (mask for places in self.keyed.values() for mask in places.values())
        return [*keyed, *self.beside.values(), *(mask for mask, _ in self.segmentations)]


def find_masks(
    files: Sequence[SourceFile],
    segmentations: Sequence[tuple[SourceFile, Segmentation]],
    *,
    folder: Path | None,
    structures: Structures,
) -> Masks:
    """Find the masks of a source.

    A NIfTI is a mask in the given folder, in one of :data:`FOLDERS`, or where it is named after another NIfTI
    of its folder (``case7.nii.gz``, ``case7_seg.nii.gz``). A folder of NIfTI that are all called as
    structures is one mask. Numbers get names from a table of the mask's own name, else from ``labels.*``,
    ``structures.*`` or ``dataset.json`` at or above the mask; where there is none, they are taken to be
    TotalSegmentator's, and a note says so.

    Args:
        files: of the source.
        segmentations: DICOM segmentations with what their headers say.
        folder: where masks lie; may be outside the source.
        structures: what names mean.

    Raises:
        UsageError: ``folder`` is no folder.
        BadTable: a table of names cannot be read.
    """
    masks = Masks()
    inside = {file.path.resolve() for file in files}
    if folder is not None:
        if not folder.is_dir():
            raise UsageError(
                "the folder of masks is not a folder.", hint="Give the folder that holds the masks."
            )
        files = [*files, *(file for file in discover(folder) if file.path.resolve() not in inside)]
    nifti = [file for file in files if file.kind == "nifti"]
    names = _Naming(files, folder)
    unnamed = 0
    for where, group in _by_folder(nifti).items():
        stems = {_stem(file.path) for file in group}
        whole = _among_masks(group[0], folder)
        if len(group) > 1 and all(_stem(file.path) in structures for file in group):
            parts = tuple(_binary(file, structures) for file in group)
            generic = where.name.casefold() in FOLDERS
            own = where.parent if generic else where
            masks.add(
                dict.fromkeys((own.name, _base(own.name))),
                Mask(where, "folder", parts),
                place=_place_of(own, group[0], folder, levels=1 + generic),
                beside=own.as_posix() if generic else None,
            )
            masks.taken.update(file.path for file in group)
            continue
        for file in group:
            stem = _stem(file.path)
            base = _base(stem)
            if not (whole or (base != stem and base in stems)):
                continue
            numbered = names.of(file.path)
            unnamed += numbered is None
            masks.add(
                dict.fromkeys((stem, base) if whole else (base,)),
                Mask(file.path, "labels", _structures(numbered or TOTAL, structures)),
                place=_place(file, folder) if whole else Place(where.as_posix()),
            )
            masks.taken.add(file.path)
    _add_segmentations(masks, segmentations, structures)
    masks.taken |= names.used
    known = {one.name for mask in masks.every() for one in mask.structures}
    masks.notes += structures.unknown(sorted(known))
    if unnamed:
        masks.notes.append(
            f"{unnamed} label maps come without names of their numbers: they were read as those of "
            "TotalSegmentator (task total, version 2); a file labels.yaml beside them says otherwise"
        )
    return masks


def _add_segmentations(
    masks: Masks, segmentations: Sequence[tuple[SourceFile, Segmentation]], structures: Structures
) -> None:
    for file, said in segmentations:
        mask = Mask(file.path, "segmentation", _structures(said.names, structures))
        for series in said.series or ("",):
            masks.add((series,), mask)
        if not any(entry.path == mask.path for entry in masks.unpaired):  # of a series that has one
            masks.segmentations.append((mask, said))
        masks.taken.add(file.path)


def _by_folder(files: Sequence[SourceFile]) -> dict[Path, list[SourceFile]]:
    groups: dict[Path, list[SourceFile]] = defaultdict(list)
    for file in files:
        groups[file.path.parent].append(file)
    return groups


def _among_masks(file: SourceFile, folder: Path | None) -> bool:
    """Whether a file lies in the given folder of masks, or below the source in one called so."""
    if folder is not None and file.path.resolve().is_relative_to(folder.resolve()):
        return True
    return any(part.casefold() in FOLDERS for part in file.relative.split("/")[:-1])


def _place(file: SourceFile, folder: Path | None) -> Place:
    """Return where a file counts that lies in the given folder of masks, or in one called so."""
    if folder is not None and file.path.resolve().is_relative_to(folder.resolve()):
        return Place(under=_posix(file.path.resolve().parent.relative_to(folder.resolve())))
    above = file.relative.split("/")[:-1]
    first = next(at for at, part in enumerate(above) if part.casefold() in FOLDERS)
    return Place(file.path.parents[len(above) - first].as_posix(), "/".join(above[first + 1 :]))


def _place_of(own: Path, file: SourceFile, folder: Path | None, *, levels: int) -> Place:
    """Return where a folder of binary maps counts; it lies ``levels`` folders below what encloses it."""
    place = _place(file, folder) if _among_masks(file, folder) else None
    if place is None or own.as_posix() == place.within:
        return Place(own.parent.as_posix())
    return Place(place.within, "/".join(place.under.split("/")[:-levels]))


def _posix(path: Path) -> str:
    return "" if path == Path() else path.as_posix()


def _stem(path: Path) -> str:
    return path_parts(path.name)[0]


def _base(stem: str) -> str:
    """Return a stem without the ending that says that it is a mask."""
    return _ENDINGS.sub("", stem)


def _binary(file: SourceFile, structures: Structures) -> Structure:
    name = _stem(file.path)
    return Structure(name, structures.number(name), file=file.path)


def _structures(names: Mapping[int, str], structures: Structures) -> tuple[Structure, ...]:
    return tuple(
        Structure(name, structures.number(name), number)
        for number, name in sorted(names.items())
        if number > 0
    )


class _Naming:
    """The files that name the numbers of label maps."""

    def __init__(self, files: Sequence[SourceFile], folder: Path | None) -> None:
        self.used: set[Path] = set()
        self._known: dict[Path, dict[int, str]] = {}
        self._own: dict[tuple[Path, str], Path] = {}
        self._common: dict[Path, Path] = {}
        for file in files:
            stem, suffix = file.path.stem, file.path.suffix.casefold()
            if suffix not in _NAMING_SUFFIXES:
                continue
            self._own[file.path.parent, stem] = file.path
            listed = suffix in TABLE_SUFFIXES  # labels.csv elsewhere holds findings
            if stem.casefold() in _NAMING and (not listed or _among_masks(file, folder)):
                self._common.setdefault(file.path.parent, file.path)

    def of(self, mask: Path) -> dict[int, str] | None:
        """Return the names of a label map's numbers, or None when nothing names them."""
        path = self._own.get((mask.parent, _stem(mask)))
        path = path or next((self._common[up] for up in mask.parents if up in self._common), None)
        if path is None:
            return None
        self.used.add(path)
        if path not in self._known:
            self._known[path] = _read_names(path)
        return self._known[path]


def _read_names(path: Path) -> dict[int, str]:
    if path.suffix.casefold() in TABLE_SUFFIXES:
        return _table_names(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path.stat().st_size:,} bytes")
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise BadTable(f"the names of structures in {file_token(path)} cannot be read.") from error
    found: dict[int, str] = {}
    if path.suffix.casefold() == ".json":
        found = _json_names(text)
    else:
        for line in text.splitlines():
            match = _LINE.fullmatch(line)
            if match:
                found[int(match[1] or match[4])] = (match[2] or match[3]).strip()
    if not found:
        raise BadTable(
            f"{file_token(path)} names no number of a structure.",
            hint="Write one a line, for example  1: lung_left.",
        )
    return found


def _json_names(text: str) -> dict[int, str]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    values = values.get("labels", values) if isinstance(values, dict) else {}
    found = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, int):
            found[value] = str(key)
        elif str(key).isdigit() and isinstance(value, str):
            found[int(key)] = value
    return found


def _table_names(path: Path) -> dict[int, str]:
    frame = read_table(path)
    by_plain = {plain(str(name)): str(name) for name in frame.columns}
    number = next(
        (by_plain[n] for n in _NUMBERS if n in by_plain and frame[by_plain[n]].str.fullmatch(r"\d+").all()),
        None,
    )
    name = next((by_plain[n] for n in _NAMES if n in by_plain and by_plain[n] != number), None)
    if number is None or name is None:
        raise BadTable(
            f"the table {file_token(path)} does not name the numbers of structures.",
            hint="It needs a column of whole numbers (id) and one of names (structure).",
        )
    return {int(key): str(value) for key, value in zip(frame[number], frame[name], strict=True)}
