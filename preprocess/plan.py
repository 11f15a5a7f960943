"""The plan of a run: what is known of each image before its pixels are read, cut into chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medvl.preprocess.reading.burned import Policy
from medvl.records import Box, LabelState
from medvl.specs import PixelSpec, ReportSpec

__all__ = ["Chunk", "Job", "Task"]


@dataclass(frozen=True, repr=False)
class Job:
    """One image of the plan with all that a record needs and the pixels do not tell.

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
    """In pixels of the source."""
    names: tuple[str, ...] = ()
    """Of people; they must not survive in the text."""
    ids: tuple[str, ...] = ()
    """Identifiers that must not survive in the text."""
    shift_days: int = 0
    """By which every date of the patient moves."""


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
    pixels: PixelSpec
    report: ReportSpec
    plan: str
    """Digest of the plan; a part of another plan is not taken over."""
    burned_in: Policy = "off"
    """What is done about text in the pictures."""
    clean_text: bool = True
    """Whether names, identifiers and dates are taken out of the reports."""
    label_text: bool = False
    """Whether the labels are what the reports say, because the source has no label."""

    def shard(self, chunk: Chunk) -> Path:
        """Return where the shard of a chunk lies."""
        return self.out / "shards" / f"{chunk.name}.tar"

    def part(self, chunk: Chunk) -> Path:
        """Return where the part of a chunk lies."""
        return self.out / "private" / "parts" / f"{chunk.name}.json.gz"

    def current(self, chunk: Chunk) -> Path:
        """Return the file that names the job which a worker is busy with."""
        return self.out / "private" / "work" / f"{chunk.name}.current"
