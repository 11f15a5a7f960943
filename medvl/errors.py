"""The exception tree: every error that medvl raises on purpose, and how it speaks.

MedvlError                        exit 4
├── UsageError                    exit 2   a call or a configuration that cannot be carried out
│   ├── ConfigError                        a recipe, an option or a YAML file
│   └── MissingDependency                  an optional package is not installed
├── InputError                             a file from outside that breaks a rule
│   ├── NotDicom                           no DICM prefix, or an empty file
│   ├── IncompleteDicom                    an element that an image needs is missing
│   ├── TruncatedPixels                    fewer pixel bytes than the header promises
│   ├── PixelLimit                         a header that asks for more pixels than allowed
│   ├── DecompressionLimit                 a stream that inflates beyond the limit
│   ├── NestingLimit                       sequences, JSON or YAML nested too deeply
│   ├── BadElement                         a DICOM element has a value that the standard forbids
│   ├── MultiFrame                         several frames, and none was chosen
│   ├── DecodeError                        a codec refused the pixel data
│   ├── BadImage                           a raster file or a volume that is damaged or not an image
│   ├── BadAffine                          a volume that does not say where it lies in space
│   ├── IrregularSeries                    slices that do not form one regular volume
│   │   └── GapInSeries                    slices are missing between others
│   ├── BurnedInText                       a film holds burned-in text, and the policy is to drop it
│   ├── BadArchive                         a zip or tar that is damaged or would leave its folder
│   ├── BadTable                           a report table that cannot be read or matched
│   └── BadReport                          a report text beyond its limits
└── IntegrityError                         one of our own files is damaged or does not belong
    ├── StoreError
    ├── CheckpointError
    ├── BundleError
    ├── IndexFileError
    └── DigestMismatch                     a query was prepared by another spec than the model's

A message names what was got, what is allowed and what to do next. It never holds a patient's
name, an identifier or a file name: files are named by :func:`file_token`.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "BadAffine",
    "BadArchive",
    "BadElement",
    "BadImage",
    "BadReport",
    "BadTable",
    "BundleError",
    "BurnedInText",
    "CheckpointError",
    "ConfigError",
    "DecodeError",
    "DecompressionLimit",
    "DigestMismatch",
    "GapInSeries",
    "IncompleteDicom",
    "IndexFileError",
    "InputError",
    "IntegrityError",
    "IrregularSeries",
    "MedvlError",
    "MissingDependency",
    "MultiFrame",
    "NestingLimit",
    "NotDicom",
    "PixelLimit",
    "StoreError",
    "TruncatedPixels",
    "UsageError",
    "file_token",
    "nearest",
]


class MedvlError(Exception):
    """The base of every error that medvl raises on purpose.

    Args:
        message: what was got and what is allowed, in one line.
        hint: what to do next, in one line.

    Attributes:
        rule: a short stable name of the broken rule, for tables and ``failures.jsonl``.
        exit_code: the exit status of the ``medvl`` command.
    """

    exit_code = 4

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".rstrip())
        self.message = message
        self.hint = hint

    @property
    def rule(self) -> str:
        """The name of the class, which is the name of the rule."""
        return type(self).__name__


class UsageError(MedvlError):
    """A call that cannot be carried out as it was made."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe, an option or a YAML file that breaks its schema."""


class MissingDependency(UsageError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(
            f"this needs the package {package}, which is not installed.",
            hint=f"Install it with: pip install 'medvl[{extra}]' -c constraints.txt",
        )


class InputError(MedvlError):
    """A file from outside that breaks a rule; it costs one record, never the run."""


class NotDicom(InputError):
    """The file is not DICOM Part 10."""


class IncompleteDicom(InputError):
    """An element that a readable image must have is missing."""


class TruncatedPixels(InputError):
    """The pixel data hold fewer bytes than the header promises."""


class PixelLimit(InputError):
    """The header asks for more pixels than the limit allows."""


class DecompressionLimit(InputError):
    """A compressed stream grows beyond the limit."""


class NestingLimit(InputError):
    """A structure is nested more deeply than the limit allows."""


class BadElement(InputError):
    """A DICOM element has a value that the standard forbids."""


class MultiFrame(InputError):
    """The file holds several frames, and the call names none of them."""


class DecodeError(InputError):
    """No decoder could read the pixel data."""


class BadImage(InputError):
    """A raster image or a volume that is damaged, or not an image."""


class BadAffine(InputError):
    """A volume whose affine is singular, not finite, or missing."""


class IrregularSeries(InputError):
    """Slices that do not form one regular volume.

    Attributes:
        verdict: the verdict on the geometry, ``"rejected:<reason>"``.
    """

    def __init__(self, message: str, *, verdict: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.verdict = verdict


class GapInSeries(IrregularSeries):
    """Slices are missing between others."""


class BurnedInText(InputError):
    """A film holds burned-in text, and the policy is to drop such films."""


class BadArchive(InputError):
    """A zip or tar that is damaged, or holds what does not belong into a folder of files."""


class BadTable(InputError):
    """A table that cannot be read, or whose columns cannot be matched."""


class BadReport(InputError):
    """A report text beyond its limits."""


class IntegrityError(MedvlError):
    """A file that medvl wrote is damaged, incomplete or of another version."""


class StoreError(IntegrityError):
    """A record store that is damaged or incomplete."""


class CheckpointError(IntegrityError):
    """A checkpoint that is damaged, incomplete or unsafe to load."""


class BundleError(IntegrityError):
    """A bundle that is damaged, incomplete or unsafe to load."""


class IndexFileError(IntegrityError):
    """A search index that is damaged or belongs to another bundle."""


class DigestMismatch(IntegrityError):
    """The data were interpreted by another spec than the model's."""

    def __init__(self, what: str, *, got: str, expected: str, hint: str = "") -> None:
        super().__init__(
            f"the {what} digest is {got}, but the model was made with {expected}.",
            hint=hint or "Prepare the data again with the spec that the model carries.",
        )


def file_token(path: str | Path) -> str:
    """Name a file in a message without naming the patient: a hash of its base name.

    Examples:
        >>> file_token("somewhere/DOE_JOHN_19400101.dcm")
        'file-d5b6ccc53f'
    """
    name = Path(path).name.encode("utf-8", "surrogateescape")
    return "file-" + hashlib.blake2b(name, digest_size=5).hexdigest()


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Say which values are allowed and which of them is nearest to ``value``.

    Examples:
        >>> nearest("densnet", ["densenet121", "vit"])
        "Allowed: densenet121, vit. Did you mean 'densenet121'?"
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    return f"Allowed: {', '.join(names)}.{guess}"
