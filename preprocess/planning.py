"""From a source to the plan of a run: opened, paired, pseudonymised, cut into chunks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from medvl.errors import UsageError, file_token
from medvl.preprocess.chunks import start_worker
from medvl.preprocess.plan import Chunk, Job
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.preprocess.sources.archives import unpack
from medvl.preprocess.sources.dicomdir import folder_of
from medvl.preprocess.sources.headers import Looked, Map
from medvl.preprocess.sources.layouts import find
from medvl.preprocess.sources.masks import find_masks
from medvl.preprocess.sources.pairing import Pairing, Unpaired, pair
from medvl.preprocess.sources.volumes import VolumeSource, with_masks
from medvl.preprocess.structures import Structures
from medvl.progress import Progress
from medvl.specs import PixelSpec, VolumeSpec
from medvl.splits import split_of

__all__ = [
    "VOLUMETRIC",
    "Tables",
    "digest_of",
    "header_map",
    "open_source",
    "pair_source",
    "plan_chunks",
    "plan_jobs",
    "volume_source",
]

_DICOM_MODALITIES = {
    "cxr": frozenset({"CR", "DX", "DR", "RG", "RF", "XA", "OT", "SC"}),
    "ct": frozenset({"CT"}),
}
"""Values of Modality (PS3.3 C.7.3.1.1.1) that a store may hold; a file that states none is taken."""
VOLUMETRIC = ("ct",)
"""The modalities whose images are volumes."""
_MANY_FILES, _FILES_AT_ONCE = 2048, 64
"""From so many headers on a pool pays for its start; how many go to a process at once."""
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


def pair_source(
    source: Path,
    tables: Tables,
    *,
    modality: str,
    volumes: VolumeSource | None = None,
    map_headers: Map = map,
) -> tuple[Pairing, str]:
    """Pair the images and reports of an opened source; return also the name of its layout ("" for none).

    Args:
        source: the folder.
        tables: which tables are read, and how.
        modality: of the store.
        volumes: for a modality of volumes, what must be known of theirs.
        map_headers: a ``map``, for example of a process pool, over which headers are read.

    Raises:
        UsageError: an unknown layout, or one of another modality.
        BadTable: see :func:`medvl.preprocess.sources.pairing.pair`.
    """
    layout = None
    if tables.layout != "none" and not (tables.layout == "auto" and tables.given):
        layout = find(source, name=None if tables.layout == "auto" else tables.layout)
    if layout is None:
        paired = pair(
            source,
            table=tables.table,
            columns=tables.columns,
            labels=tables.labels,
            boxes=tables.boxes,
            map_headers=map_headers,
            volumes=volumes,
        )
        return _of_modality(paired, modality), ""
    if layout.modality not in (modality, "any"):
        raise UsageError(
            f"the source is {layout.name}, a data set of modality '{layout.modality}'; this is '{modality}'.",
            hint=f"Use medvl {layout.modality} prepare, or --layout none to pair by file and table.",
        )
    paired = layout.read(source)
    if volumes is not None and volumes.masks is not None:
        paired = _masked(paired, volumes, volumes.masks)
    known = f"read as the public data set {layout.name}; --layout none pairs by file and table instead"
    return _of_modality(dataclasses.replace(paired, notes=(known, *paired.notes)), modality), layout.name


def volume_source(
    pixels: PixelSpec | VolumeSpec, modality: str, *, masks: Path | None, structures: Path | None
) -> VolumeSource | None:
    """Return what pairing must know of volumes; None for films.

    Raises:
        UsageError: a spec, or an option, of the other kind of image.
    """
    if isinstance(pixels, VolumeSpec) != (modality in VOLUMETRIC):
        raise UsageError(
            f"the modality is '{modality}' and the pixels are to follow a {pixels.what}.",
            hint="VolumeSpec is for ct, PixelSpec for films.",
        )
    if isinstance(pixels, VolumeSpec):
        return VolumeSource(Structures.read(structures, parts=pixels.parts), masks)
    if masks is not None or structures is not None:
        raise UsageError(f"masks and structures belong to volumes; the modality is '{modality}'.")
    return None


@contextlib.contextmanager
def header_map(
    volumes: VolumeSource | None, workers: int | None, *, progress: Progress | None
) -> Iterator[Map]:
    """Yield a map over the files of a source; slices may be hundreds of thousands: theirs has processes."""
    pools = contextlib.ExitStack()

    def mapped(look: Callable[[Path], Looked], paths: Iterable[Path]) -> Iterator[Looked]:
        every = list(paths)
        count = workers or len(os.sched_getaffinity(0))
        results: Iterable[Looked] = map(look, every)
        if volumes is not None and count > 1 and len(every) >= _MANY_FILES:
            context = multiprocessing.get_context("spawn")
            silent = (Path(os.devnull),)
            pool = pools.enter_context(
                ProcessPoolExecutor(count, mp_context=context, initializer=start_worker, initargs=silent)
            )
            results = pool.map(look, every, chunksize=_FILES_AT_ONCE)
        for done, looked in enumerate(results, start=1):
            if progress is not None and volumes is not None and done % _FILES_AT_ONCE == 0:
                progress(done, len(every), "reading headers")
            yield looked

    with pools:
        yield mapped


def _masked(paired: Pairing, volumes: VolumeSource, folder: Path) -> Pairing:
    """Give the volumes of a public data set the masks of a folder that the user names."""
    masks = find_masks((), (), folder=folder, structures=volumes.structures)
    items = tuple(with_masks(paired.items, masks))
    unpaired = (*paired.unpaired, *masks.unpaired, *masks.unused())
    return dataclasses.replace(paired, items=items, unpaired=unpaired, notes=(*paired.notes, *masks.notes))


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
    """Return one job an image or volume, in the order of the record ids."""
    jobs = []
    for item in paired.items:
        relative = item.path.relative_to(source).as_posix()
        jobs.append(
            Job(
                record_id=ids.record(f"{relative}#{item.stack}" if item.stack else relative),
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
                series=item.series,
                mask=item.mask,
                names=item.names,
                ids=item.ids,
                shift_days=ids.shift_days(item.patient),
            )
        )
    return sorted(jobs, key=lambda job: job.record_id)


def digest_of(jobs: Sequence[Job]) -> str:
    """Hash all that the plan takes from the source: sizes of files, places of slices, texts, labels.

    Paths are left out, so a source may move while its store is half done.
    """
    digest = hashlib.blake2b(digest_size=12)
    for job in jobs:
        plain = dataclasses.replace(job, series=None, mask=None)
        values = dataclasses.asdict(plain) | {"path": None, "bytes": Path(job.path).stat().st_size}
        if job.series is not None:
            values["slices"] = [(one.sop_uid, one.frame, one.position) for one in job.series.slices]
            values["bytes"] = [path.stat().st_size for path in job.files()]
        if job.mask is not None:
            values["structures"] = [(one.name, one.part, one.number) for one in job.mask.structures]
            values["masks"] = [path.stat().st_size for path in job.mask.files()]
        digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()


def plan_chunks(jobs: Sequence[Job], *, most: int) -> list[Chunk]:
    """Cut the jobs into shards of at most so many records."""
    size = min(most, max(_FEWEST, -(-len(jobs) // 32)))
    return [Chunk(k, tuple(jobs[i : i + size])) for k, i in enumerate(range(0, len(jobs), size))]
