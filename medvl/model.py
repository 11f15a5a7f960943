"""A trained model that answers: embed a file or a sentence, name findings, show where, search cases."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image as Pillow

from medvl.errors import DigestMismatch, UsageError
from medvl.heads.grounding import phrase_map
from medvl.heads.zeroshot import Prompts, ZeroShot
from medvl.images import Image
from medvl.modeldir import LoadedModel
from medvl.preprocess.reading import read_image
from medvl.preprocess.reports import parse_report
from medvl.retrieval.lance import LanceIndex
from medvl.retrieval.results import Results

__all__ = ["Model"]

Source = str | Path | Image
"""A film: a DICOM or picture file, or an image that a reader returned."""


class Model:
    """A loaded model with everything that interprets its inputs.

    Every film passes the model's own pixel and input specs, every text its own report spec, so a
    query is read exactly as the training data were.

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

    def stored(self, source: Source) -> UInt8[np.ndarray, "height width"]:
        """Return the film as a store would hold it: display polarity, 8 bits, aspect ratio kept."""
        image = source if isinstance(source, Image) else read_image(Path(source))
        return self.loaded.pixels.apply(image)

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
        """Return the unit vector of a film.

        Args:
            source: a DICOM or picture file, or an :class:`medvl.images.Image`.
        """
        return self.loaded.embed_images([self.stored(source)])[0]

    def embed_text(self, text: str) -> Float32[np.ndarray, " dim"]:
        """Return the unit vector of a sentence or a report."""
        return self.loaded.embed_texts([self.sentences(text)])[0]

    def findings(self, source: Source, findings: Sequence[str] | None = None) -> Mapping[str, float]:
        """Return zero-shot scores, most likely first: similarity to prompts for minus against.

        A score orders films, it is no probability, and there is no threshold in it.

        Args:
            source: the film.
            findings: names; default: every finding that the prompts list.
        """
        names = list(findings) if findings is not None else sorted(self.prompts.findings)
        scores = ZeroShot(self.loaded, self.prompts, names).scores(self.embed_image(source)[None])[0]
        return dict(sorted(zip(names, map(float, scores), strict=True), key=lambda pair: -pair[1]))

    def heat_map(self, source: Source, phrase: str) -> Float[np.ndarray, "height width"]:
        """Return the similarity of each place of the stored film to a phrase, NaN off the film."""
        return phrase_map(self.loaded, self.stored(source), self.sentences(phrase))

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
            image: a film.
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
            film = self.stored(image)
            parts.append(self.loaded.embed_images([film])[0])
            thumbnail = _jpeg(film)
        if not parts:
            raise UsageError("a search needs a text, an image, or both.", hint="Give --text or --image.")
        query = np.stack(parts).mean(0, dtype=np.float32)
        hits = opened.search(query, k=k, where=where, exclude_patients=exclude_patients)
        return Results(tuple(hits), text=text, where=where, query_thumbnail=thumbnail)


def _jpeg(film: UInt8[np.ndarray, "height width"]) -> bytes:
    picture = Pillow.fromarray(film)
    picture.thumbnail((320, 320))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()
