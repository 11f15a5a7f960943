"""Zero-shot findings: prompts for and against a finding, and how much nearer an image is to the first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medvl.config import read_config
from medvl.errors import ConfigError, UsageError, nearest

__all__ = ["EmbedsText", "PromptPair", "Prompts", "ZeroShot", "prompt_vector", "read_prompts"]


@runtime_checkable
class EmbedsText(Protocol):
    """What a zero-shot classifier needs of a model."""

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Return one vector a text."""
        ...


class PromptPair(BaseModel):
    """What a report says when the finding is there, and when it is not."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    positive: tuple[str, ...] = Field(min_length=1)
    negative: tuple[str, ...] = Field(min_length=1)


class Prompts(BaseModel):
    """A versioned set of prompts; findings that it does not list take the template.

    Examples:
        >>> template = PromptPair(positive=("{finding}",), negative=("no {finding}",))
        >>> prompts = Prompts(version="1", template=template)
        >>> prompts.of("pleural_effusion").negative
        ('no pleural effusion',)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: str
    template: PromptPair
    findings: dict[str, PromptPair] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hash of the version and every prompt."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()

    def of(self, finding: str) -> PromptPair:
        """Return the prompts of a finding: its own, or the template with its name in words."""
        if finding in self.findings:
            return self.findings[finding]
        words = finding.replace("_", " ")
        return PromptPair(
            positive=tuple(prompt.replace("{finding}", words) for prompt in self.template.positive),
            negative=tuple(prompt.replace("{finding}", words) for prompt in self.template.negative),
        )


def read_prompts(path: Path) -> Prompts:
    """Read a prompts file (YAML or JSON).

    Raises:
        ConfigError: the file is missing or unreadable, a key is unknown, or a finding lacks prompts.
    """
    values = read_config(Path(path))
    if not isinstance(values, dict):
        raise ConfigError(
            f"the prompts file holds {type(values).__name__}, not keys.",
            hint="Keys: version, template, findings.",
        )
    for key in values:
        if key not in Prompts.model_fields:
            raise ConfigError(
                f"the prompts file has no key '{key}'.", hint=nearest(key, Prompts.model_fields)
            )
    try:
        return Prompts.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"prompts: {where}: {first['msg']}.", hint="Give positive and negative lists."
        ) from error


def prompt_vector(embeddings: Float[np.ndarray, "prompts dim"]) -> Float[np.ndarray, " dim"]:
    r"""Return the unit vector of a set of prompts, $\bar t / \lVert \bar t \rVert$, $\bar t$ their mean.

    The embeddings are averaged, then normalised, as BioViL does; averaging similarities instead would
    weigh a set by how much its prompts agree.
    """
    rows = embeddings.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    mean = rows.mean(0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


class ZeroShot:
    r"""Scores findings by prompts: $s_f(v) = \cos(v, t_f^+) - \cos(v, t_f^-)$, in -2…2, no threshold.

    Args:
        model: embeds the prompts.
        prompts: for and against each finding.
        findings: which findings.

    Attributes:
        templated: findings that took the template, to be named beside their scores.

    Raises:
        UsageError: no findings.
    """

    def __init__(self, model: EmbedsText, prompts: Prompts, findings: Sequence[str]) -> None:
        if not findings:
            raise UsageError("there are 0 findings to score.", hint="Name at least one.")
        self.prompts, self.findings = prompts, tuple(findings)
        self.templated = tuple(finding for finding in findings if finding not in prompts.findings)
        self._directions: Mapping[str, tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " dim"]]] = {
            finding: (
                prompt_vector(model.embed_texts(list(prompts.of(finding).positive))),
                prompt_vector(model.embed_texts(list(prompts.of(finding).negative))),
            )
            for finding in findings
        }

    def scores(self, images: Float[np.ndarray, "images dim"]) -> Float[np.ndarray, "images findings"]:
        """Return one score per image and finding; larger means more likely present."""
        unit = images.astype(np.float64)
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
        positive = np.stack([self._directions[finding][0] for finding in self.findings])
        negative = np.stack([self._directions[finding][1] for finding in self.findings])
        return unit @ positive.T - unit @ negative.T
