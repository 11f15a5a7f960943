"""The plan of a run: what is known of each image before its pixels are read, cut into chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medvl.preprocess.reading.burned import Policy
from medvl.preprocess.reading.series import Series
from medvl.preprocess.structures_masks import Mask
from medvl.records import Box, LabelState
from medvl.specs import PixelSpec, ReportSpec, VolumeSpec

__all__ = ["Chunk", "Irregular", "Job", "Task"]

Irregular = Literal["reject", "resample"]
"""What :func:`medvl.preprocess.reading.series.read_series` does with a series that is not regular."""


@dataclass(frozen=True, repr=False)
class Job:
    """One image or volume of the plan with all that a record needs and the pixels do not tell.

    It has no ``repr``: an engine may log the arguments of a task that fails.
    """

    record_id: str
    study_id: str
    patient_id: str
    split: str
    path: str
    token: str
    report: str
    view: str | None = None
    laterality: str | None = None
    labels: dict[str, LabelState] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    """In pixels of the source; of a volume in RAS+ millimetres."""
    series: Series | None = None
    """The slices of a volume, where it is a DICOM series."""
    mask: Mask | None = None
    """Of a volume."""
    names: tuple[str, ...] = ()
    """Of people; they must not survive in the text."""
    ids: tuple[str, ...] = ()
    """Identifiers that must not survive in the text."""
    shift_days: int = 0
    """By which every date of the patient moves."""

    def files(self) -> tuple[Path, ...]:
        """Return the files that hold its pixels."""
        return (Path(self.path),) if self.series is None else self.series.paths


@dataclass(frozen=True, repr=False)
class Chunk:
    """The jobs of one shard."""

    number: int
    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        """The stem of the shard's file name."""
        return f"{self.number:06d}"


@dataclass(frozen=True, repr=False)
class Task:
    """What all chunks of a run share."""

    out: Path
    modality: str
    pixels: PixelSpec | VolumeSpec
    report: ReportSpec
    plan: str
    """Digest of the plan; a part of another plan is not taken over."""
    burned_in: Policy = "off"
    """What is done about text in the pictures."""
    clean_text: bool = True
    """Whether names, identifiers and dates are taken out of the reports."""
    label_text: bool = False
    """Whether the labels are what the reports say, because the source has no label."""
    allow_gaps: bool = False
    """Whether holes in a series are filled by interpolation."""
    on_irregular: Irregular = "reject"
    """What is done with tilted or unevenly spaced series."""

    def shard(self, chunk: Chunk) -> Path:
        """Return where the shard of a chunk lies."""
        return self.out / "shards" / f"{chunk.name}.tar"

    def part(self, chunk: Chunk) -> Path:
        """Return where the part of a chunk lies."""
        return self.out / "private" / "parts" / f"{chunk.name}.json.gz"

    def current(self, chunk: Chunk) -> Path:
        """Return the file that names the job which a worker is busy with."""
        return self.out / "private" / "work" / f"{chunk.name}.current"
