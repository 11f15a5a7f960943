"""One DICOM file cleaned and written under the names of its hashes, in a process of its own."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

from medvl.errors import InputError
from medvl.preprocess.deid.header import Actions, clean_dataset, file_meta, set_pixel_flags
from medvl.preprocess.deid.isolation import in_processes
from medvl.preprocess.deid.pixels import Pixels, Policy, take_pixels
from medvl.preprocess.deid.profile import Profile
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.preprocess.reading.limits import DEFAULT_LIMITS
from medvl.preprocess.reading.part10 import missing, opened, text
from medvl.store import write_atomic

__all__ = ["FileTask", "Outcome", "clean_file", "clean_files"]


class KindNotCleaned(InputError):
    """A file of a kind that cannot be cleaned: it is never copied."""


@dataclass(frozen=True)
class FileTask:
    """What a worker needs to clean one file.

    Attributes:
        path: the original.
        target: where the clean file goes.
        note: where the outcome is kept, for a run that goes on.
        key: of the pseudonyms.
        patient: whose pseudonym and days it takes.
        names, numbers: that the patient's files state.
        profile: the table and its options.
        pixels: what happens to burned-in text.
    """

    path: Path
    target: Path
    note: Path
    key: bytes
    patient: str
    names: tuple[str, ...]
    numbers: tuple[str, ...]
    profile: Profile
    pixels: Policy


@dataclass
class Outcome:
    """What became of a file: written, or refused by a rule.

    Attributes:
        refused: name of the rule that it broke; "" when it was written.
        message: of the error, free of names.
        taken: attribute to action to count.
        words: kind to count of the words replaced in texts.
        looked, text_regions, masked: of the search for burned-in text.
    """

    refused: str = ""
    message: str = ""
    taken: dict[str, dict[str, int]] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)
    looked: bool = False
    text_regions: int = 0
    masked: bool = False

    @property
    def actions(self) -> Actions:
        """The counts as they add up."""
        taken = {name: Counter(counts) for name, counts in self.taken.items()}
        return Actions(taken, Counter(self.words))


def clean_file(task: FileTask) -> Outcome:
    """Clean one file, write it and its outcome; an outcome that is there already is returned.

    Raises:
        StoreError: the output cannot be written.
    """
    if task.target.is_file() and task.note.is_file():
        return Outcome(**json.loads(task.note.read_bytes()))
    try:
        data, actions, pixels = _cleaned(task)
    except InputError as error:
        return Outcome(error.rule, error.message)
    outcome = Outcome(
        taken={name: dict(counts) for name, counts in actions.taken.items()},
        words=dict(actions.words),
        looked=pixels.looked,
        text_regions=sum(region.kind == "text" for region in pixels.regions),
        masked=pixels.masked,
    )
    task.target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(task.target, data)
    write_atomic(task.note, json.dumps(asdict(outcome), sort_keys=True).encode())
    return outcome


def _cleaned(task: FileTask) -> tuple[bytes, Actions, Pixels]:
    """Return the bytes of the clean file; a parser or an encoder that stumbles gives an InputError."""
    with opened(task.path, limits=DEFAULT_LIMITS, lenient=True) as part10:
        dataset = part10.dataset
        if "EncapsulatedDocument" in dataset or ".1.1.104." in text(dataset, "SOPClassUID"):
            raise KindNotCleaned(
                "the file holds a document (PDF, CDA, STL …), whose words and pictures nobody cleans here.",
                hint="Keep it apart, or export its text as a report.",
            )
        if part10.pixel_keyword is None and "Image Storage" in UID(text(dataset, "SOPClassUID")).name:
            raise missing("PixelData")  # the file was cut inside its header
        carrier = Dataset()
        pixels = take_pixels(task.path, part10, carrier, policy=task.pixels)
        actions = clean_dataset(
            dataset,
            ids=Pseudonyms(task.key),
            patient=task.patient,
            profile=task.profile,
            names=task.names,
            numbers=task.numbers,
        )
        set_pixel_flags(dataset, looked=pixels.looked, text_left=pixels.text_left)
        for element in carrier:  # pixels, and their description where they were decoded
            dataset[element.tag] = element
        written = FileDataset(
            io.BytesIO(),
            dataset,
            preamble=bytes(128),
            file_meta=file_meta(dataset, transfer_syntax=pixels.transfer_syntax),
        )
        written.set_original_encoding(
            dataset.original_encoding[0], dataset.original_encoding[1], dataset.original_character_set
        )
        stream = io.BytesIO()
        dcmwrite(stream, written, enforce_file_format=True)
        return stream.getvalue(), actions, pixels


def clean_files(tasks: Sequence[FileTask], *, workers: int) -> Iterator[tuple[int, Outcome]]:
    """Clean files in processes; yield the place of each task with its outcome, in any order.

    A file that kills its process is refused by the rule ``WorkerCrash``, and costs no other file.
    """
    crashed = Outcome("WorkerCrash", "the file ended its process.")
    yield from in_processes(clean_file, tasks, workers=workers, crashed=crashed)
