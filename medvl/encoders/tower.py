"""What both towers share: how far they train, and how they are described so that they can be rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

from pydantic import ValidationError
from torch import Tensor, nn

from medvl.catalogue import Catalogue
from medvl.encoders.blocks import block_names, checkpoint_block, module_depths, parameter_depths
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
        frozen_layers: blocks at the input that rest whatever the policy, with all that lies before them;
            they stay in eval mode too.
    """

    name: str
    architecture: dict[str, Any]

    def __init__(self, *, name: str, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        self.name = name
        self.architecture = dict(architecture)
        self.policy: TrainPolicy = "full"
        self.lora: dict[str, Any] | None = None
        self.frozen_layers = 0

    def train(self, mode: bool = True) -> Tower:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Switch between training and evaluation as far as the policy allows."""
        super().train(mode and self.policy != "frozen")
        if mode and self.policy == "lora":
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        if mode and self.frozen_layers:
            for name, depth in module_depths(self).items():
                if depth <= self.frozen_layers:
                    self.get_submodule(name).training = False
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
        depths = self.depths if self.frozen_layers else {}
        for name, parameter in self.named_parameters():
            trains = policy == "full" or (policy == "lora" and ".lora_" in name)
            rests = bool(depths) and depths[name] <= self.frozen_layers
            parameter.requires_grad_(trains and not rests)
        return self.train(self.training)

    def freeze_layers(self, count: int) -> Tower:
        """Let the first blocks rest whatever the policy, with the embeddings before them; 0 for none.

        ConVIRT (arXiv 2010.00747) freezes six layers of BERT so.

        Raises:
            ConfigError: more blocks than there are.
        """
        blocks = len(block_names(self))
        if count > blocks:
            raise ConfigError(
                f"freeze_layers is {count}, but encoder '{self.name}' has {blocks} blocks.",
                hint=f"Allowed: 0 to {blocks}; train: frozen freezes all of it.",
            )
        self.frozen_layers = count
        return self.set_policy(self.policy)

    @property
    def depths(self) -> dict[str, int]:
        """Depth of each parameter: 0 before the first block, n + 1 after the last of n."""
        return parameter_depths(self)

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers or residual blocks, from the input on."""
        return [self.get_submodule(name) for name in block_names(self)]

    def checkpoint_activations(self) -> Tower:
        """Compute the blocks' activations again in the backward pass instead of keeping them."""
        for block in self.blocks:
            checkpoint_block(block)
        return self

    def load_weights(self, state: Mapping[str, Tensor]) -> Tower:
        """Take the weights of another tower of the same architecture.

        Raises:
            ConfigError: a tensor is missing, unexpected or of another shape.
        """
        own = self.state_dict()
        for name in sorted(own.keys() | state.keys()):
            here, there = own.get(name), state.get(name)
            if here is None or there is None or here.shape != there.shape:
                shapes = ["missing" if value is None else str(tuple(value.shape)) for value in (there, here)]
                raise ConfigError(
                    f"the weights do not fit encoder '{self.name}': tensor {name} is {shapes[0]} there and "
                    f"{shapes[1]} here.",
                    hint="Give the encoder the options that the weights were trained with.",
                )
        self.load_state_dict(dict(state))
        return self


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
