"""Who is who in a source: what leads from a file, a row or a folder name to a patient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from medvl.preprocess.deid.facts import Facts

__all__ = ["People"]


@dataclass
class People:
    """The patients of a source with their names and numbers, and what is theirs.

    Attributes:
        names, numbers: patient to what their files and rows state.
        owner: accession number, UID, patient id or file stem, in lower case, to the patient; None where
            two patients claim it.
        folder: folder to the patient whose files alone it holds; None where there are several.
        targets: relative path, file name and stem of an original, in lower case, to its clean file.
    """

    names: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    numbers: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    owner: dict[str, str | None] = field(default_factory=dict)
    folder: dict[str, str | None] = field(default_factory=dict)
    targets: dict[str, str | None] = field(default_factory=dict)

    def add_file(self, relative: str, facts: Facts, target: str) -> None:
        """Take in one DICOM file."""
        patient, path = facts.patient, PurePosixPath(relative)
        self.know(patient, names=facts.names, numbers=facts.numbers)
        for key in (patient, facts.accession, facts.study_uid, facts.series_uid, facts.sop_uid, path.stem):
            self._claim(self.owner, key, patient)
        self._claim(self.folder, path.parent.as_posix(), patient)
        for key in (relative, path.name, path.stem, facts.sop_uid):
            self._claim(self.targets, key, target)

    def know(self, patient: str, *, names: Iterable[str] = (), numbers: Iterable[str] = ()) -> None:
        """Add names and numbers of a patient."""
        self.names[patient].update(dict.fromkeys(name for name in names if name))
        self.numbers[patient].update(dict.fromkeys(number for number in numbers if number))

    def of(self, *keys: str) -> str | None:
        """Return the patient that the first known key belongs to."""
        return next((found for key in keys if key and (found := self.owner.get(key.lower()))), None)

    def of_path(self, relative: str) -> str | None:
        """Return the patient of a text file, by its stem, its folders' names or its neighbours."""
        path = PurePosixPath(relative)
        names = [path.stem, *(part for part in reversed(path.parts[:-1]))]
        pieces = [piece for name in names for piece in (name, *name.replace("-", "_").split("_"))]
        return self.of(*pieces) or self.folder.get(path.parent.as_posix().lower())

    def target(self, *keys: str) -> str | None:
        """Return the clean file of the first known original."""
        return next((found for key in keys if key and (found := self.targets.get(key.lower()))), None)

    @staticmethod
    def _claim(table: dict[str, str | None], key: str, value: str) -> None:
        if key:
            key = key.lower()
            table[key] = value if table.get(key, value) == value else None
