"""Volumes of a source: slices put together to series, NIfTI files, and the mask of each."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medvl.preprocess.reading.geometry import Geometry
from medvl.preprocess.reading.series import Series, find_series
from medvl.preprocess.reading.slices import Slice
from medvl.preprocess.sources.frames import SharedMasks
from medvl.preprocess.sources.headers import FoundImage
from medvl.preprocess.sources.items import Item
from medvl.preprocess.sources.masks import Masks
from medvl.preprocess.sources.names import path_parts
from medvl.preprocess.structures import Structures

__all__ = ["VOLUMES", "VolumeSource", "volumes_of", "with_masks"]

VOLUMES = frozenset({"dicom", "nifti", "damaged"})
"""Kinds of files that a pipeline of volumes reads."""

_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary captures and their multi-frame kin (PS3.4 B.5)."""
_NO_TISSUE = re.compile(
    r"\b(?:MIP|MINIP|MPVR|VRT|VR|SSD|PROJECTION IMAGE|SCREEN ?SAVE|SCREEN ?SHOT|DOSE|DOSE_INFO|3D RENDERED|"
    r"VOLUME_RENDERED|MAX_IP|MIN_IP)\b"
)
"""Words of ImageType for pictures whose values are no attenuation at a place."""


@dataclass(frozen=True)
class VolumeSource:
    """What pairing must know of a source of volumes.

    Attributes:
        structures: what the names of segmented structures mean.
        masks: the folder of their masks; found in the source if None.
    """

    structures: Structures
    masks: Path | None = None


def volumes_of(images: Sequence[FoundImage]) -> list[FoundImage]:
    """Put the slices of all files together: one image a series or volume, in the order of its first path.

    A series has the header and the path of its first file, by path. A file whose slices cannot be read stays
    alone, so that reading it says what is wrong. Pictures that are derived from the scan and hold no
    attenuation at a place (projections, screens, dose sheets) get the verdict ``rejected:derived``.
    """
    by_path = {image.file.path: image for image in images}
    slices: list[Slice] = [piece for image in images for piece in image.slices]
    found: list[FoundImage] = [image for image in images if not image.slices]
    stacks: Counter[Path] = Counter()
    for series in find_series(slices):
        paths = sorted(series.paths)
        first = by_path[paths[0]]
        stack = stacks[paths[0]]
        stacks[paths[0]] += 1
        found.append(replace(first, series=_judged(series, first), stack=stack, slices=()))
    return sorted(found, key=lambda image: (image.file.relative, image.stack))


def _judged(series: Series, first: FoundImage) -> Series:
    header = first.header
    if header is None or series.geometry.verdict == "rejected:localizer":
        return series
    derived = header.sop_class.startswith(_CAPTURES) or (
        header.image_type[:1] == ("DERIVED",) and _NO_TISSUE.search(" ".join(header.image_type[2:]))
    )
    if not derived:
        return series
    return replace(series, geometry=Geometry.rejection("derived", slices=len(series.slices)))


def with_masks(items: Sequence[Item], masks: Masks) -> list[Item]:
    """Give each volume its mask: by series, name or study, as the only volume beside it, or of its frame."""
    beside = Counter(item.path.parent for item in items if item.series is None)
    folders: dict[str, list[str]] = defaultdict(list)
    for item in items:
        folders[_stem(item)].append(item.path.parent.as_posix())
    shared = SharedMasks(items, masks.segmentations)
    found = []
    for item in items:
        stem, folder = _stem(item), item.path.parent.as_posix()
        series = item.series.slices[0].series_uid if item.series else ""
        mask = masks.find(
            (series, item.study),
            stem,
            folder=folder,
            namesakes=[other for other in folders[stem] if other != folder],
            alone=item.series is None and beside[item.path.parent] == 1,
        )
        if mask is None and item.series is not None:
            mask = shared.find(item.series)
            masks.used |= {mask.path} if mask else set()
        found.append(replace(item, mask=mask))
    return found


def _stem(item: Item) -> str:
    """Return the name of a volume that is one file; ``1.dcm`` is the first slice of many a series."""
    alone = item.series is None or len(item.series.paths) == 1
    return path_parts(item.path.name)[0] if alone else ""
