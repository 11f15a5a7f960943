"""One step of self-distillation as Lightning trains it: the student learns, then the teacher follows."""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from medvl.data.dataset import integer_key
from medvl.features import LossTerms
from medvl.training.optimiser import parameter_groups, warmup_cosine
from medvl.training.selfdistil.model import Distiller, teacher_momentum, teacher_temperature
from medvl.training.selfdistil.views import Views

__all__ = ["DistilModule"]


class DistilModule(LightningModule):
    """Student and teacher with their schedules.

    The random numbers of step s on rank r (dropout) are a function of ``(seed, s, r)``.

    Args:
        model: student and teacher.
        lr, weight_decay, betas: of AdamW.
        warmup: steps of linear warm-up of the learning rate; a cosine follows.
        floor: last factor of the learning rate.
        temperature: the teacher's at the first step, and from ``temperature_warmup`` steps on.
        momentum: of the teacher at the first step.
        steps: of the whole run.
        steps_per_epoch: for the log.
        seed: of dropout.
    """

    def __init__(
        self,
        model: Distiller,
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        warmup: int,
        floor: float,
        temperature: tuple[float, float],
        temperature_warmup: int,
        momentum: float,
        steps: int,
        steps_per_epoch: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.warmup, self.floor = warmup, floor
        self.temperature, self.temperature_warmup = temperature, temperature_warmup
        self.momentum, self.steps, self.steps_per_epoch, self.seed = momentum, steps, steps_per_epoch, seed
        self.last_terms: LossTerms | None = None

    def training_step(self, batch: Views, batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of this rank's films; its mean over ranks is that of the whole batch."""
        step = self.global_step
        torch.manual_seed(integer_key(f"{self.seed}:{step}:{self.global_rank}"))
        temperature = teacher_temperature(step, warmup=self.temperature_warmup, between=self.temperature)
        terms: LossTerms = self.model(batch, temperature=temperature)
        self.last_terms = terms
        return terms.total

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the teacher follow."""
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        self.model.follow(momentum=teacher_momentum(step, total=self.steps, start=self.momentum))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients; Lightning's own way refuses a fused AdamW in mixed precision."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW over the student with warm-up and cosine by step."""
        groups = parameter_groups(
            {"student": self.model.named_parameters()},
            lr=self.lr,
            factors={},
            weight_decay=self.weight_decay,
        )
        optimiser = torch.optim.AdamW(groups, betas=self.betas, fused=True)
        factor = functools.partial(warmup_cosine, total=self.steps, warmup=self.warmup, floor=self.floor)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Views, device: torch.device, dataloader_idx: int) -> Views:
        """Return the views on ``device``."""
        return batch.to(device)
