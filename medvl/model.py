"""A trained model that answers: embed a file or a sentence, name findings, show where, search cases."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Shaped
from PIL import Image as Pillow

from medvl.errors import DigestMismatch, InputError, NotDicom, UsageError
from medvl.heads.grounding import phrase_map
from medvl.heads.zeroshot import Prompts, ZeroShot
from medvl.images import Image, Unit
from medvl.modeldir import LoadedModel
from medvl.planes import WINDOWS, Montage
from medvl.preprocess.reading import read_image
from medvl.preprocess.reading.nifti import is_nifti, read_nifti
from medvl.preprocess.reading.series import find_series, read_series
from medvl.preprocess.reports import parse_report
from medvl.retrieval.lance import LanceIndex
from medvl.retrieval.results import Results
from medvl.specs import VolumeSpec

__all__ = ["Model", "read_volume"]

Source = str | Path | Image
"""A film: a DICOM or picture file. A volume: the folder of one DICOM series, an enhanced DICOM file or a
NIfTI file in HU. Or an image that a reader returned."""


_THUMBNAIL_PX = 320


class Model:
    """A loaded model with everything that interprets its inputs.

    Every film or volume passes the model's own pixel and input specs, every text its own report spec, so
    a query is read exactly as the training data were.

    Args:
        loaded: from :func:`medvl.modeldir.read_model` or :func:`medvl.bundle.load_bundle`.
        prompts: prompts of the modality, for :meth:`findings`.

    Examples:
        A bundle that ``medvl export`` wrote answers in three lines::

            model = medvl.load("bundle")
            hits = model.search("index", text="left pleural effusion")
            print(hits[0].report)
    """

    def __init__(self, loaded: LoadedModel, *, prompts: Prompts) -> None:
        self.loaded = loaded
        self.prompts = prompts

    def stored(self, source: Source) -> Shaped[np.ndarray, "..."]:
        """Return the film or volume as a store would hold it.

        A film has display polarity, 8 bits and its aspect ratio; a volume is in HU, on the spec's spacing.
        """
        return self.loaded.pixels.apply(self._image(source))

    def _image(self, source: Source) -> Image:
        if isinstance(source, Image):
            return source
        spec = self.loaded.pixels
        if isinstance(spec, VolumeSpec):
            return read_volume(Path(source), frame=spec.frame)
        return read_image(Path(source))

    def sentences(self, text: str) -> list[str]:
        """Return the sentences that the retrieval view keeps of a text.

        Raises:
            UsageError: nothing is left of the text.
        """
        kept = list(
            self.loaded.report.render(parse_report(text, parser=self.loaded.report.parser), "retrieval")
        )
        if not kept:
            raise UsageError("the text holds no sentence to search for.", hint="Describe a finding in words.")
        return kept

    def embed_image(self, source: Source) -> Float32[np.ndarray, " dim"]:
        """Return the unit vector of a film or a volume.

        Args:
            source: what the model reads, see :data:`Source`.
        """
        return self.loaded.embed_images([self.stored(source)])[0]

    def embed_text(self, text: str) -> Float32[np.ndarray, " dim"]:
        """Return the unit vector of a sentence or a report."""
        return self.loaded.embed_texts([self.sentences(text)])[0]

    def findings(self, source: Source, findings: Sequence[str] | None = None) -> Mapping[str, float]:
        """Return zero-shot scores, most likely first: similarity to prompts for minus against.

        A score orders cases, it is no probability, and there is no threshold in it.

        Args:
            source: the film or volume.
            findings: names; default: every finding that the prompts list.
        """
        names = list(findings) if findings is not None else sorted(self.prompts.findings)
        scores = ZeroShot(self.loaded, self.prompts, names).scores(self.embed_image(source)[None])[0]
        return dict(sorted(zip(names, map(float, scores), strict=True), key=lambda pair: -pair[1]))

    def heat_map(
        self, source: Source, phrase: str, *, against: str | None = None
    ) -> Float[np.ndarray, "..."]:
        """Return the similarity of each place of the stored film or volume to a phrase, NaN off it.

        Args:
            source: the film or volume.
            phrase: a sentence, such as "Right pleural effusion."
            against: what would be said if it were not so, such as "No pleural effusion."; the map is then
                that of the difference, which is what a model trained organ by organ has learned.
        """
        without = () if against is None else self.sentences(against)
        return phrase_map(self.loaded, self.stored(source), self.sentences(phrase), against=without)

    def search(
        self,
        index: str | Path | LanceIndex,
        *,
        text: str | None = None,
        image: Source | None = None,
        where: str | None = None,
        k: int = 10,
        exclude_patients: Sequence[str] = (),
    ) -> Results:
        """Find cases by text, by image, or by both (the mean of the two unit vectors).

        Args:
            index: an index, or the path of one.
            text: a sentence or a report.
            image: a film or a volume.
            where: an SQL filter over the index's columns.
            k: hits at most.
            exclude_patients: patients to leave out, such as the query's own.

        Raises:
            UsageError: neither text nor image is given.
            DigestMismatch: the index was made with another model.
        """
        opened = index if isinstance(index, LanceIndex) else LanceIndex(index)
        if opened.about.get("model_digest") != self.loaded.digest:
            raise DigestMismatch(
                "model",
                got=self.loaded.digest,
                expected=str(opened.about.get("model_digest")),
                hint="Search with the bundle that made the index, or index again.",
            )
        parts, thumbnail = [], b""
        if text is not None:
            parts.append(self.embed_text(text))
        if image is not None:
            opened_image = self._image(image)
            stored = self.loaded.pixels.apply(opened_image)
            parts.append(self.loaded.embed_images([stored])[0])
            thumbnail = self._thumbnail(opened_image, stored)
        if not parts:
            raise UsageError("a search needs a text, an image, or both.", hint="Give --text or --image.")
        query = np.stack(parts).mean(0, dtype=np.float32)
        hits = opened.search(query, k=k, where=where, exclude_patients=exclude_patients)
        return Results(tuple(hits), text=text, where=where, query_thumbnail=thumbnail)

    def _thumbnail(self, image: Image, stored: Shaped[np.ndarray, "..."]) -> bytes:
        if isinstance(self.loaded.pixels, VolumeSpec):
            affine = self.loaded.pixels.grid(image).affine_ras
            edges = np.linalg.norm(affine[:3, :3], axis=0)
            montage = Montage(
                stored.shape,
                tuple(map(float, edges)),
                side_px=_THUMBNAIL_PX,
                affine_ras=tuple(map(float, affine.ravel())),
            )
            picture = montage.grey(stored, WINDOWS["soft"])
        else:
            picture = Pillow.fromarray(stored)
            picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
        return stream.getvalue()


def read_volume(path: Path, *, frame: int | None = None) -> Image:
    """Read the one volume of a folder of DICOM files, of an enhanced DICOM file, or of a NIfTI file in HU.

    Files of a folder that are not DICOM are passed over, and so are stacks of fewer slices than half of the
    largest one, such as localisers.

    Args:
        path: the folder or file.
        frame: which volume of a NIfTI file with four axes, from 0.

    Raises:
        UsageError: the folder holds several volumes, or one slice.
        IrregularSeries: its slices form no regular volume.
        InputError: there is no volume, or it cannot be read.
    """
    if path.is_file() and is_nifti(path):
        return read_nifti(path, unit=Unit.HU, frame=frame)
    failed: list[InputError] = []
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    series = find_series(files, on_error=lambda _, error: failed.append(error))
    if not series:
        if failed:
            raise failed[0]
        raise NotDicom("the folder holds 0 DICOM files.", hint="Give the folder of one series.")
    most = max(len(each.slices) for each in series)
    large = [each for each in series if 2 * len(each.slices) >= most]
    if len(large) > 1:
        counts = ", ".join(str(len(each.slices)) for each in large)
        raise UsageError(
            f"the folder holds {len(large)} volumes, of {counts} slices.",
            hint="Give the folder of one series.",
        )
    if most == 1 and large[0].geometry.verdict == "ok":
        raise UsageError(
            "one slice was found; a volume has several.",
            hint="Give the folder that holds every slice of the series.",
        )
    return read_series(large[0])[0]
