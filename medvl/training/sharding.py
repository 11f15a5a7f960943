"""Towers spread over the ranks (FSDP2), in checkpoints that are those of any other run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from medvl.encoders.tower import Tower

__all__ = ["ShardedStrategy", "clip_gradients", "shard_tower"]


def shard_tower(tower: Tower, *, device: torch.device) -> None:
    """Spread the weights of a tower over all ranks, block by block.

    A block's weights come together for its computation and are let go again; gradients are averaged over the
    ranks as DDP does, and each rank keeps and steps its share alone.

    Args:
        tower: any image or text tower.
        device: of this rank.

    Source: torch.distributed.fsdp.fully_shard (FSDP2).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    tower.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # no other can be spread
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in tower.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(tower, mesh=mesh)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most ``limit``; some are spread, some are whole.

    Args:
        parameters: those without a gradient are passed over.
        limit: the largest norm.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    spread = [_local(gradient) for gradient in gradients if _is_spread(gradient)]
    whole = [gradient for gradient in gradients if not _is_spread(gradient)]
    square = torch.stack([*(g.double().square().sum() for g in spread), torch.zeros(()).double()]).sum()
    dist.all_reduce(square)
    norm = (square + sum(g.double().square().sum() for g in whole)).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*spread, *whole):
        gradient.mul_(factor.to(gradient.dtype))
    return norm


class ShardedStrategy(DDPStrategy):
    """One process a device; the module shards itself, and checkpoints hold whole tensors.

    Lightning's own strategy for FSDP2 keeps its checkpoints in torch's pickled format. Here a run directory
    is the same whatever the strategy, and a run may change it when it resumes.
    """

    def configure_ddp(self) -> None:
        """Leave the model as it is: its towers average their own gradients."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return whole tensors, on every rank."""
        return {name: _whole(value) for name, value in super().lightning_module_state_dict().items()}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:  # noqa: FBT001, FBT002 - Lightning's signature
        """Give each rank its share of the tensors of a checkpoint."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: _alike(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimiser's state with whole tensors."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        state = optimizer.state_dict()
        moments = {
            index: {name: _whole(value) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": moments}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each rank its share of the optimiser's state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            moments = {
                index: {name: _alike(value, parameters[index]) for name, value in values.items()}
                for index, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": moments})


def _is_spread(value: Any) -> bool:
    return hasattr(value, "full_tensor")


def _local(value: Any) -> Tensor:
    local: Tensor = value.to_local()
    return local


def _whole(value: Any) -> Any:
    return value.full_tensor() if _is_spread(value) else value


def _alike(value: Any, own: Any) -> Any:
    """Return ``value`` spread as ``own`` is; counters and what is not spread stay whole."""
    if not _is_spread(own) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every rank has read the checkpoint: nothing needs to be sent, in whatever order the ranks ask.
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
