"""What both towers share: how far they train, and how they are described so that they can be rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

from pydantic import ValidationError
from torch import nn

from medvl.catalogue import Catalogue
from medvl.errors import ConfigError, nearest

__all__ = ["TRAIN_POLICIES", "Tower", "TrainPolicy", "build_tower"]

TrainPolicy = Literal["full", "frozen", "lora"]
TRAIN_POLICIES = ("full", "frozen", "lora")
T = TypeVar("T")


class Tower(nn.Module):
    """An encoder that knows its catalogue name, its architecture and its training policy.

    Attributes:
        name: the name in the catalogue.
        architecture: JSON values from which the same module is rebuilt with random weights.
        lora: options of the adapters that it has, if any.
        policy: ``full`` trains everything; ``frozen`` trains nothing and stays in eval mode whatever
            ``model.train()`` says; ``lora`` trains adapters, and layers with running statistics
            stay in eval mode so that no frozen tensor changes.
    """

    name: str
    architecture: dict[str, Any]

    def __init__(self, *, name: str, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        self.name = name
        self.architecture = dict(architecture)
        self.policy: TrainPolicy = "full"
        self.lora: dict[str, Any] | None = None

    def train(self, mode: bool = True) -> Tower:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Switch between training and evaluation as far as the policy allows."""
        super().train(mode and self.policy != "frozen")
        if mode and self.policy == "lora":
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def set_policy(self, policy: str) -> Tower:
        """Set how far this tower trains; ``lora`` needs :func:`medvl.encoders.lora.add_lora` first.

        Raises:
            ConfigError: an unknown policy, or ``lora`` without adapters.
        """
        if policy not in TRAIN_POLICIES:
            raise ConfigError(f"unknown training policy '{policy}'.", hint=nearest(policy, TRAIN_POLICIES))
        if policy == "lora" and self.lora is None:
            raise ConfigError(
                f"the policy of encoder '{self.name}' is 'lora', but it has no adapters.",
                hint="Give its 'lora' options: rank, alpha, dropout, targets.",
            )
        self.policy = cast(TrainPolicy, policy)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(policy == "full" or (policy == "lora" and ".lora_" in name))
        return self.train(self.training)


def build_tower(catalogue: Catalogue[T], name: str, options: Mapping[str, Any], *subject: Any) -> T:
    """Build an encoder by name; a value of the wrong kind is a ConfigError like an unknown key."""
    try:
        return catalogue.build(name, options, *subject)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{catalogue.kind} '{name}': option {where} is {first['input']!r}: {first['msg']}."
        ) from error
