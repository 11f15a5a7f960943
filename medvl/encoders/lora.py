"""Low-rank adapters on either tower, through peft: put in, train alone, merge away."""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medvl.encoders.tower import Tower
from medvl.errors import ConfigError, nearest

__all__ = ["LoraOptions", "add_lora", "merge_lora"]

TowerT = TypeVar("TowerT", bound=Tower)
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


class LoraOptions(BaseModel):
    """Rank r, scale alpha, dropout on the adapter's input, and which layers get an adapter.

    ``dora`` learns the length of each output's weights apart from their direction (DoRA, arXiv 2402.09353):
    ``W' = m · V / ‖V‖`` with ``V = W + (alpha / r) · B A``, the norm over each row and ``m = ‖W‖`` at first.
    ``targets`` is ``all-linear``, ``all-conv`` (ungrouped convolutions) or name patterns with ``*``, such
    as ``["*.query", "*.value"]``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rank: int = Field(default=8, ge=1, le=4096)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = "all-linear"
    dora: bool = False


def add_lora(encoder: TowerT, options: LoraOptions | None = None) -> TowerT:
    """Put adapters into ``encoder``, in place, and train them alone.

    ``W' = W + (alpha / r) · B A`` with ``A`` random and ``B = 0`` (Hu et al. 2021, arXiv 2106.09685), so the
    output is bit for bit what it was until the first step (with DoRA to rounding). Each layer trains
    ``r · (d_in + d_out)`` values, with DoRA ``d_out`` more. A latent pooling and LLM2CLIP's adaptor
    train as a whole.

    Args:
        encoder: an image or text tower.
        options: see :class:`LoraOptions`.

    Raises:
        ConfigError: the encoder has adapters already, or no layer matches the targets.
    """
    from peft import LoraConfig, inject_adapter_in_model

    options = options or LoraOptions()
    if encoder.lora is not None:
        raise ConfigError(f"encoder '{encoder.name}' has adapters already.", hint="Merge them first.")
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft divides it, any number will do
        lora_dropout=options.dropout,
        target_modules=_targets(encoder, options.targets),
        use_dora=options.dora,
    )
    inject_adapter_in_model(config, encoder)
    encoder.lora = options.model_dump(mode="json")
    encoder.set_policy("lora")
    return encoder


def _targets(encoder: Tower, targets: str | tuple[str, ...]) -> list[str]:
    fitting = {
        name: module
        for name, module in encoder.named_modules()
        if _adaptable(module) and not name.startswith(("pooler.", "adaptor."))
    }
    if targets == "all-linear":
        found = [name for name, module in fitting.items() if not isinstance(module, _CONVOLUTIONS)]
    elif targets == "all-conv":
        found = [name for name, module in fitting.items() if isinstance(module, _CONVOLUTIONS)]
    else:
        patterns = (targets,) if isinstance(targets, str) else targets
        found = [name for name in fitting if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not found:
        wanted = targets if isinstance(targets, str) else ", ".join(targets)
        raise ConfigError(
            f"no layer of encoder '{encoder.name}' matches the targets '{wanted}'.",
            hint=nearest(wanted, {"all-linear", "all-conv", *list(fitting)[:4]}),
        )
    return found


def _adaptable(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":  # GPT-2's linear layer
        return True
    # Not a subclass: it may pad by itself, and the adapter's own convolution would not.
    return type(module) in _CONVOLUTIONS and bool(module.groups == 1)  # type: ignore[attr-defined]


def _conv_delta(layer: Any, adapter: str) -> Tensor:
    """Return ``(alpha / r) · B A`` of a convolution: B is pointwise and A has the layer's kernel."""
    after, before = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
    return layer.scaling[adapter] * torch.einsum("or,ri...->oi...", after.flatten(1), before)


def merge_lora(encoder: TowerT) -> TowerT:
    """Fold the adapters into the weights, in place; the module is then one that never had any.

    Raises:
        ConfigError: there are no adapters.
    """
    from peft.tuners.lora import LoraLayer

    if encoder.lora is None:
        raise ConfigError(f"encoder '{encoder.name}' has no adapters to merge.")
    adapted = {name: module for name, module in encoder.named_modules() if isinstance(module, LoraLayer)}
    for name, module in adapted.items():
        if isinstance(module.get_base_layer(), nn.Conv3d):
            # peft takes a kernel of 1 x 1 x 1 for a flat one.
            module.get_delta_weight = functools.partial(_conv_delta, module)  # type: ignore[attr-defined]
        module.merge()  # type: ignore[operator]
        parent, _, leaf = name.rpartition(".")
        setattr(encoder.get_submodule(parent), leaf, module.get_base_layer())
    encoder.lora = None
    encoder.set_policy("frozen")
    return encoder
