"""From a source to the plan of a run: opened, paired, pseudonymised, cut into chunks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medvl.errors import UsageError, file_token
from medvl.preprocess.plan import Chunk, Job
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.preprocess.sources.archives import unpack
from medvl.preprocess.sources.dicomdir import folder_of
from medvl.preprocess.sources.layouts import find
from medvl.preprocess.sources.pairing import Pairing, Unpaired, pair
from medvl.splits import split_of

__all__ = ["Tables", "digest_of", "open_source", "pair_source", "plan_chunks", "plan_jobs"]

_DICOM_MODALITIES = {"cxr": frozenset({"CR", "DX", "DR", "RG", "RF", "XA", "OT", "SC"})}
"""Values of Modality (PS3.3 C.7.3.1.1.1) that a store may hold; a file that states none is taken."""
_FEWEST = 4
"""A small source still gives some 32 shards of at least this many records: enough for every core."""


@dataclass(frozen=True)
class Tables:
    """Which tables of a source are read, and how; what is None is found.

    Attributes:
        layout: the name of a public layout, ``"auto"`` to look, ``"none"`` for none.
        table, labels, boxes: paths.
        columns: role to column name, where the guess is wrong.
    """

    layout: str = "auto"
    table: Path | None = None
    columns: Mapping[str, str] | None = None
    labels: Path | None = None
    boxes: Path | None = None

    @property
    def given(self) -> bool:
        """Whether the user says how to read the source, so that no layout needs to be looked for."""
        return any((self.table, self.columns, self.labels, self.boxes))


def open_source(source: Path, *, into: Path) -> Path:
    """Return the folder of a source: itself, that of a DICOMDIR, or what its archive holds.

    Args:
        source: a folder, a DICOMDIR or an archive.
        into: where an archive is unpacked; a finished unpacking is not done again.

    Raises:
        UsageError: neither a folder nor a file.
        BadArchive: an archive that is damaged or hostile, or a file that is none.
    """
    source = folder_of(source)
    if source.is_dir():
        return source
    if not source.is_file():
        raise UsageError(
            "the source is neither a folder nor a file.", hint="Give the folder or archive of the images."
        )
    into.parent.mkdir(parents=True, exist_ok=True)
    unpack(source, into)
    return _only_folder(into)


def _only_folder(folder: Path) -> Path:
    """Step into the one folder that archives often hold."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX"]
    return _only_folder(inside[0]) if len(inside) == 1 and inside[0].is_dir() else folder


def pair_source(source: Path, tables: Tables, *, modality: str) -> tuple[Pairing, str]:
    """Pair the images and reports of an opened source; return also the name of its layout ("" for none).

    Raises:
        UsageError: an unknown layout, or one of another modality.
        BadTable: see :func:`medvl.preprocess.sources.pairing.pair`.
    """
    layout = None
    if tables.layout != "none" and not (tables.layout == "auto" and tables.given):
        layout = find(source, name=None if tables.layout == "auto" else tables.layout)
    if layout is None:
        paired = pair(
            source, table=tables.table, columns=tables.columns, labels=tables.labels, boxes=tables.boxes
        )
        return _of_modality(paired, modality), ""
    if layout.modality not in (modality, "any"):
        raise UsageError(
            f"the source is {layout.name}, a data set of modality '{layout.modality}'; this is '{modality}'.",
            hint=f"Use medvl {layout.modality} prepare, or --layout none to pair by file and table.",
        )
    paired = layout.read(source)
    known = f"read as the public data set {layout.name}; --layout none pairs by file and table instead"
    return _of_modality(dataclasses.replace(paired, notes=(known, *paired.notes)), modality), layout.name


def _of_modality(paired: Pairing, modality: str) -> Pairing:
    """Leave out what the header says is of another modality: a PACS exports a patient's CT with the films."""
    allowed = _DICOM_MODALITIES.get(modality)
    other = [item for item in paired.items if allowed and item.modality and item.modality not in allowed]
    if not other:
        return paired
    lost = {item.path for item in other}
    unpaired = [entry for entry in paired.unpaired if entry.path not in lost]
    unpaired += [Unpaired("other_modality", file_token(item.path), path=item.path) for item in other]
    kept = tuple(item for item in paired.items if item.path not in lost)
    return dataclasses.replace(paired, items=kept, unpaired=tuple(unpaired))


def plan_jobs(
    source: Path, paired: Pairing, *, ids: Pseudonyms, split: Sequence[float], seed: int
) -> list[Job]:
    """Return one job an image, in the order of the record ids."""
    jobs = []
    for item in paired.items:
        relative = item.path.relative_to(source).as_posix()
        jobs.append(
            Job(
                record_id=ids.record(relative),
                study_id=ids.study(item.study),
                patient_id=ids.patient(item.patient),
                split=item.split or split_of(item.patient, seed=seed, fractions=split),
                path=str(item.path),
                token=file_token(item.path),
                report=item.report,
                view=item.view,
                laterality=item.laterality,
                labels=dict(item.labels),
                boxes=tuple(item.boxes),
                names=item.names,
                ids=item.ids,
                shift_days=ids.shift_days(item.patient),
            )
        )
    return sorted(jobs, key=lambda job: job.record_id)


def digest_of(jobs: Sequence[Job]) -> str:
    """Hash all that the plan takes from the source: paths, sizes, texts, labels."""
    digest = hashlib.blake2b(digest_size=12)
    for job in jobs:
        values = dataclasses.asdict(job) | {"path": None, "bytes": Path(job.path).stat().st_size}
        digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()


def plan_chunks(jobs: Sequence[Job], *, most: int) -> list[Chunk]:
    """Cut the jobs into shards of at most so many records."""
    size = min(most, max(_FEWEST, -(-len(jobs) // 32)))
    return [Chunk(k, tuple(jobs[i : i + size])) for k, i in enumerate(range(0, len(jobs), size))]
