"""The whole road on phantoms: draw, prepare, train, evaluate, export, index, search."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvl import verbs
from medvl.errors import UsageError, nearest
from medvl.notice import NOTICE
from medvl.progress import Progress

__all__ = ["DemoSummary", "demo"]


@dataclass(frozen=True)
class Road:
    """What a demo draws, prepares and asks.

    Attributes:
        studies: phantom studies.
        phantoms: how they are drawn.
        folder: their name in the output.
        pixels: values of the pixel spec.
        query: what the index is asked.
    """

    studies: int
    phantoms: dict[str, Any]
    folder: str
    pixels: dict[str, Any]
    query: str


ROADS = {
    "cxr": Road(1200, {}, "films", {"longest_px": 256}, "Large left pleural effusion."),
    "ct": Road(
        800,
        {
            "level": "easy",
            "size_px": 64,
            # What voxels of 6 mm show.
            "findings": (
                "cardiomegaly",
                "consolidation",
                "emphysema",
                "hiatal_hernia",
                "liver_lesion",
                "lung_opacity",
                "pericardial_effusion",
                "pleural_effusion",
            ),
        },
        "studies",
        {"spacing_mm": (6, 6, 6)},
        "Large right pleural effusion.",
    ),
}


@dataclass(frozen=True)
class DemoSummary:
    """Where the demo left its results.

    Attributes:
        page: the evaluation: tables, gallery, heat maps.
        search_page: the answer to one question.
        query: the question.
        seconds: wall time of each step of this call.
    """

    page: Path
    search_page: Path
    bundle: Path
    query: str
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        paths = {name: str(getattr(self, name)) for name in ("page", "search_page", "bundle")}
        return {**paths, "query": self.query, "seconds": self.seconds}

    def lines(self) -> list[str]:
        """Return the text of the command; the last line but one is the page to open."""
        steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return [
            f"wall time: {steps}",
            f"a model to load from Python: {self.bundle}",
            f"search for '{self.query}': {self.search_page}",
            NOTICE,
            f"open this page: {self.page}",
        ]


def demo(
    out: str | Path,
    *,
    modality: str = "cxr",
    n: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> DemoSummary:
    """Walk the whole road on synthetic studies; called again, it goes on where it was.

    Args:
        out: the folder that receives everything.
        modality: ``"cxr"`` or ``"ct"``.
        n: phantom studies; 1,200 of films or 800 of volumes by default.
        seed: of the phantoms and of the training.
        progress: called as the steps go by.
    """
    if modality not in ROADS:
        raise UsageError(f"unknown modality '{modality}'.", hint=nearest(modality, ROADS))
    road = ROADS[modality]
    out = Path(out)
    seconds: dict[str, float] = {}
    names = (road.folder, "store", "run", "bundle", "index")
    studies, store, run, bundle, index = (out / name for name in names)

    def timed(name: str, verb: Any, *arguments: Any, **options: Any) -> Any:
        started = time.monotonic()
        result = verb(*arguments, **options)
        seconds[name] = round(time.monotonic() - started, 1)
        return result

    timed(
        "phantoms",
        verbs.phantom,
        studies,
        modality=modality,
        n=n or road.studies,
        seed=seed,
        progress=progress,
        **road.phantoms,
    )
    # A phantom's pseudonyms protect nobody; a fixed key makes two demos equal to the byte.
    timed(
        "prepare",
        verbs.prepare,
        studies,
        store,
        modality=modality,
        pixels=road.pixels,
        key=b"demo" * 8,
        progress=progress,
    )
    timed(
        "train",
        verbs.train,
        store,
        run,
        modality=modality,
        overrides=[f"loop.seed={seed}"],
        progress=progress,
    )
    evaluation = timed("evaluate", verbs.evaluate, run, store, progress=progress)
    for stale in (bundle, index):
        shutil.rmtree(stale, ignore_errors=True)
    timed("export", verbs.export, run, bundle, onnx=_has_onnx())
    timed("index", verbs.index, bundle, store, index, progress=progress)
    search_page = out / "search.html"
    timed("search", verbs.search, index, text=road.query, where="split = 'test'", k=12, html=search_page)
    return DemoSummary(evaluation.page, search_page, bundle, road.query, seconds)


def _has_onnx() -> bool:
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))
