"""A training step of ``train`` against a hand-written PyTorch loop: same model, same batches, same bits.

Between two steps of Lightning's loop, where it asks for the next batch, the twin takes the same step by
hand, twice: once for the ratio, once more so that the noise of the machine (hand against hand) is known.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tinystore import write_tiny

STEPS = 60
WARMUP = 10
BAR = 1.03


class Hand:
    """The thirty lines that everyone writes, on a copy of the model."""

    def __init__(self, module) -> None:
        self.module = copy.deepcopy(module)
        configured = self.module.configure_optimizers()
        self.optimiser = configured["optimizer"]
        self.schedule = configured["lr_scheduler"]["scheduler"]
        self.module.train()
        self.losses, self.seconds, self.step = [], [], 0

    def take(self, batch) -> None:
        from medvl.data.dataset import integer_key

        start = time.process_time()
        module = self.module
        torch.manual_seed(integer_key(f"{module.seed}:{self.step}:0"))
        if self.step % module.steps_per_epoch == 0:
            module.objective.on_epoch(self.step // module.steps_per_epoch)
        self.optimiser.zero_grad()
        image, text = module.encode(batch)
        loss = module.loss(image, text, batch).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        self.optimiser.step()
        module.objective.clamp_()
        self.schedule.step()
        self.seconds.append(time.process_time() - start)
        self.losses.append(float(loss.detach()))
        self.step += 1


def measure(*overrides: str) -> dict[str, float]:
    """Train once and return the ratios of medians and of minima."""
    from medvl import recipes
    from medvl.training import module as module_room
    from medvl.training import run as run_room
    from medvl.training import steps  # noqa: F401 - it must know the plain class before it is replaced

    hands: list[Hand] = []
    ours: list[float] = []
    losses: list[float] = []

    class Watched(module_room.AlignmentModule):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            hands.extend(Hand(self) for _ in range(2))

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.detach())
            return loss

    class Interleaved(run_room.BatchStream):
        def __iter__(self):
            for batch in super().__iter__():
                for hand in hands if len(ours) % 2 else hands[::-1]:
                    hand.take(batch)
                left = time.process_time()
                yield batch
                ours.append(time.process_time() - left)

    plain = module_room.AlignmentModule, run_room.BatchStream
    module_room.AlignmentModule, run_room.BatchStream = Watched, Interleaved
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = write_tiny(Path(folder) / "store", n=240, size=64)
            loop = [f"schedule.steps={STEPS}", f"loop.every_steps={STEPS}", "loop.log_every=10"]
            recipe = recipes.resolve("multi", [*overrides, *loop])
            run_room.train(store, Path(folder) / "run", recipe=recipe)
    finally:
        module_room.AlignmentModule, run_room.BatchStream = plain
    curves = [[float(loss) for loss in losses], *(hand.losses for hand in hands)]
    # Lightning fetches one batch ahead: its first interval is the set-up, so the pairs are shifted by one.
    one, two = (hand.seconds[WARMUP : len(ours)] for hand in hands)
    mine = ours[WARMUP + 1 :]
    return {
        "pairs": len(mine),
        "step_ms": 1000 * statistics.median(one),
        "ratio_of_medians": statistics.median(mine) / statistics.median([*one, *two]),
        "ratio_of_minima": min(mine) / min(*one, *two),
        "hand_against_hand": statistics.median(one) / statistics.median(two),
        "bit_equal": float(curves[0] == curves[1] == curves[2]),
    }


def main() -> None:
    """Print both sizes beside their bar; noise above 5 % makes a figure inconclusive."""
    torch.set_num_threads(1)
    tiny = ("image.options={widths: [16, 32], blocks: [1, 1]}", "text.options={layers: 1, width: 64}")
    for name, overrides in (("tiny towers", tiny), ("default towers", ())):
        result = measure(*overrides)
        noisy = abs(result["hand_against_hand"] - 1) > 0.05
        passed = result["ratio_of_medians"] <= BAR and result["bit_equal"]
        verdict = "inconclusive" if noisy else "pass" if passed else "FAIL"
        equal = "bit-equal" if result["bit_equal"] else "DIFFER"
        print(
            f"step, {name:<15} {result['step_ms']:6.1f} ms by hand; "
            f"train / hand {result['ratio_of_medians']:.3f} (minima {result['ratio_of_minima']:.3f}, "
            f"hand / hand {result['hand_against_hand']:.3f}, bar {BAR}), losses {equal}, "
            f"n={result['pairs']:.0f}  {verdict}"
        )


if __name__ == "__main__":
    main()
