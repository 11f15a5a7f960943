"""A frozen value with a digest, and the one way in which text is folded before it is compared."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from medvl.errors import ConfigError, DigestMismatch, nearest

__all__ = ["INVISIBLE", "Spec", "fold", "text_hash"]

INVISIBLE = frozenset({"Cc", "Cf", "Cs"})
"""Categories of what no reader sees: control, format (zero width, direction), lone surrogate."""


def fold(text: str) -> str:
    r"""Return ``text`` in Unicode NFC, invisible characters gone, white space folded to single blanks.

    Examples:
        >>> fold("no\u200b  effu\x00sion\n")
        'no effusion'
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in INVISIBLE)
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def text_hash(text: str) -> str:
    """Return a hash that two reports share when they say the same words ("" for no words)."""
    words = fold(text).casefold()
    return hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=12).hexdigest() if words else ""


S = TypeVar("S", bound="Spec")  # the run-time type checker of the tests does not know typing.Self


class Spec(BaseModel):
    """A frozen value with a digest; two specs have one digest exactly when they are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    what: ClassVar[str] = "spec"

    @property
    def digest(self) -> str:
        """Hash of the canonical JSON of all fields."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(f"{self.what}:{canonical}".encode(), digest_size=8).hexdigest()

    @classmethod
    def from_json(cls: type[S], values: dict[str, Any]) -> S:
        """Build a spec from JSON values.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        for key in values:
            if key not in cls.model_fields:
                raise ConfigError(f"{cls.what} has no key '{key}'.", hint=nearest(key, cls.model_fields))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # of several values together
                raise ConfigError(f"{cls.what}: {first['msg']}.") from error
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{cls.what}: {where} is {first['input']!r}: {first['msg']}.") from error

    def require(self, digest: str) -> None:
        """Refuse data made by another spec.

        Raises:
            DigestMismatch: ``digest`` is not this spec's.
        """
        if digest != self.digest:
            raise DigestMismatch(self.what, got=digest, expected=self.digest)
