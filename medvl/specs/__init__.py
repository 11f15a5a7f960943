"""The frozen specs: the one place where a pixel or a word is interpreted, and its digest.

``PixelSpec`` turns what a reader returns into the stored array, ``InputSpec`` the stored array into
the model's tensor, ``ReportSpec`` a parsed report into the two text views; ``VolumeSpec`` and
``VolumeInput`` are the first two for CT volumes. A store, a checkpoint and a bundle carry them as JSON; a
query whose digest differs is refused.
"""

from medvl.specs.base import Spec, fold, text_hash
from medvl.specs.pixels import InputSpec, PixelSpec
from medvl.specs.tensors import VolumeInput
from medvl.specs.text import PLACEHOLDER, RAW_PLACEHOLDER, ReportSpec, View
from medvl.specs.volumes import VolumeGrid, VolumeSpec

__all__ = [
    "PLACEHOLDER",
    "RAW_PLACEHOLDER",
    "InputSpec",
    "PixelSpec",
    "ReportSpec",
    "Spec",
    "View",
    "VolumeGrid",
    "VolumeInput",
    "VolumeSpec",
    "fold",
    "text_hash",
]
