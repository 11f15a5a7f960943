"""LLM2CLIP's text side: a resting language model, its states kept, and an adaptor that trains on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from medvl.encoders.saving import save_tensors
from medvl.encoders.texttower import TextTower
from medvl.errors import ConfigError, DigestMismatch
from medvl.features import TextFeatures
from medvl.progress import Progress
from medvl.store import file_sha256
from medvl.tokens import ReportTokeniser

__all__ = ["Adaptor", "AdaptorShape", "Llm2ClipTower", "StateCache", "fill_cache", "model_key"]


class AdaptorShape(BaseModel):
    """Residual blocks, and how much wider each is inside: ``2 · depth · expansion · d²`` weights in all."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    depth: int = Field(default=4, ge=0, le=64)
    expansion: int = Field(default=2, ge=1, le=64)


class Adaptor(nn.Module):
    """``x ← x/‖x‖``, then ``depth`` times ``x ← x + W₂ GELU(W₁ LN(x))``, then ``LN(x)`` (METHODS 7.5).

    ``W₂ = 0`` at the start, so the blocks begin as the identity.

    Args:
        width: d, of the language model.
        depth: blocks.
        expansion: inner width of a block over d.
    """

    def __init__(self, width: int, *, depth: int = 4, expansion: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, expansion * width),
                nn.GELU(),
                nn.Linear(expansion * width, width),
            )
            for _ in range(depth)
        )
        for block in self.blocks:
            nn.init.zeros_(block[3].weight)  # type: ignore[index, arg-type]
            nn.init.zeros_(block[3].bias)  # type: ignore[index, arg-type]
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return adapted vectors of the same width."""
        x = F.normalize(x, dim=-1)
        for block in self.blocks:
            x = x + block(x)
        return self.norm(x)


class StateCache:
    """The hidden states of each distinct text's real tokens, float32, in memory and in one file.

    A text of n tokens takes ``4 n d`` bytes: 100 tokens of a 2,048-wide model 0.8 MB. Reports whose sentences
    are put into another order each epoch are new texts each epoch: train those with ``data.order: report``.

    Args:
        key: digest of everything that decides the states, see :func:`model_key`.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.states: dict[str, Float[Tensor, "tokens width"]] = {}

    @staticmethod
    def name(tokens: Int[Tensor, " tokens"]) -> str:
        """Return the name of a text: a hash of its real tokens' ids."""
        return hashlib.blake2b(tokens.cpu().numpy().astype("<i8").tobytes(), digest_size=16).hexdigest()

    def save(self, path: Path) -> None:
        """Write the states; a killed write leaves the file before it."""
        temporary = path.with_name(f".{path.name}.tmp")
        save_tensors(self.states, temporary, metadata={"key": self.key})
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, *, key: str) -> StateCache:
        """Read the states of a file.

        Raises:
            ConfigError: there is no such file, or it is damaged.
            DigestMismatch: another model, tokeniser, pooling, length or number format made it.
        """
        try:
            with safe_open(path, "pt") as stream:
                found = (stream.metadata() or {}).get("key", "none")
                if found != key:
                    raise DigestMismatch(
                        "cached states'",
                        got=found,
                        expected=key,
                        hint="Fill it again with this model and tokeniser.",
                    )
                cache = cls(key)
                cache.states = {name: stream.get_tensor(name) for name in stream.keys()}
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                "option 'cache_file' is no file of hidden states.", hint="Make it with fill_cache."
            ) from error
        return cache


def model_key(directory: Path, *, tokeniser: ReportTokeniser, architecture: Mapping[str, Any]) -> str:
    """Return a digest of what decides a text's states: weights, tokeniser and its length, how it is read."""
    files = {path.name: file_sha256(path) for path in sorted(Path(directory).glob("*.safetensors"))}
    read = {key: architecture[key] for key in ("config", "pooling", "bidirectional", "dtype")}
    text = json.dumps([files, tokeniser.digest, tokeniser.max_tokens, read], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Llm2ClipTower(TextTower):
    """A language model that rests, and an :class:`Adaptor` on its pooled, word and sentence vectors.

    The policy ``full`` trains the adaptor alone, and the states of a text are read from the cache where there
    is one; ``lora`` also trains adapters of the model, which is then read live; ``frozen`` trains nothing.
    """

    def __init__(self, model: Any, *, name: str, architecture: Mapping[str, Any], **rest: Any) -> None:
        super().__init__(model, name=name, architecture=architecture, **rest)
        self.adaptor = Adaptor(self.width, **dict(architecture["adaptor"]))
        self.cache: StateCache | None = None
        self.register_load_state_dict_pre_hook(_forget_other_weights)
        self.set_policy("full")

    def set_policy(self, policy: str) -> Llm2ClipTower:
        """Set how far this tower trains; the language model itself rests under every policy."""
        super().set_policy(policy)
        self.model.requires_grad_(requires_grad=False)
        if policy == "lora":
            for name, value in self.model.named_parameters():
                value.requires_grad_(".lora_" in name)
        self.adaptor.requires_grad_(policy != "frozen")
        return self

    def train(self, mode: bool = True) -> Llm2ClipTower:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Switch between training and evaluation; a model that rests has no dropout."""
        super().train(mode)
        if self.lora is None:
            self.model.eval()
        return self

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"]
    ) -> TextFeatures:
        """Return adapted pooled, word and sentence vectors; masked ones are zero."""
        raw = super().forward(tokens, token_mask)
        return TextFeatures(
            pooled=raw.pooled,
            words=self.adaptor(raw.words).masked_fill(~raw.word_mask[..., None], 0.0),
            word_mask=raw.word_mask,
            sentences=self.adaptor(raw.sentences).masked_fill(~raw.sentence_mask[..., None], 0.0),
            sentence_mask=raw.sentence_mask,
        )

    def _pool(self, hidden: Tensor, real: Tensor) -> Tensor:
        return self.adaptor(super()._pool(hidden, real))

    def _hidden(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.lora is not None:
            self.cache = None  # merged later, it is another model than the one that was read
            return super()._hidden(tokens, token_mask)
        # Outside autocast: a state must not depend on which step asked for it first.
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            if self.cache is None:
                return super()._hidden(tokens, token_mask)
            return self._cached(tokens, token_mask, self.cache.states), None

    def _cached(self, tokens: Tensor, token_mask: Tensor, kept: dict[str, Tensor]) -> Tensor:
        real = token_mask != 0
        names = [StateCache.name(row[mask]) for row, mask in zip(tokens, real, strict=True)]
        fresh = [row for row, name in enumerate(names) if name not in kept]
        if fresh:
            computed, _ = super()._hidden(tokens[fresh], token_mask[fresh])
            for row, states in zip(fresh, computed, strict=True):
                kept[names[row]] = states[real[row]].cpu().clone()
        hidden = torch.zeros(*tokens.shape, self.width, device=tokens.device)
        hidden[real] = torch.cat([kept[name] for name in names]).to(tokens.device)
        return hidden


def _forget_other_weights(tower: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Drop the cache if other weights than those that made it are about to be loaded."""
    own = tower.state_dict()
    for name, value in own.items():
        given = state.get(prefix + name)
        if name.startswith("model.") and given is not None and not torch.equal(given.to(value), value):
            tower.cache = None  # type: ignore[assignment]
            return


@torch.no_grad()
def fill_cache(
    tower: Llm2ClipTower,
    texts: Sequence[Sequence[str]],
    path: Path,
    *,
    tokeniser: ReportTokeniser,
    batch: int = 32,
    progress: Progress | None = None,
) -> int:
    """Read every distinct text once, texts of like length together, and write ``path``; return their number.

    Raises:
        ConfigError: the tower was built with ``cache: false``, or its weights were replaced.
    """
    if tower.cache is None:
        raise ConfigError("this text encoder keeps no states.", hint="Build it with cache: true.")
    distinct = sorted({tuple(text) for text in texts}, key=lambda text: (sum(map(len, text)), text))
    for first in range(0, len(distinct), batch):
        tokens, mask = tokeniser.encode(distinct[first : first + batch])
        device = next(tower.parameters()).device
        tower.states(torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device))
        if progress is not None:
            progress(min(first + batch, len(distinct)), len(distinct), "reading texts")
    tower.cache.save(path)
    return len(tower.cache.states)
