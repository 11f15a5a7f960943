"""Two gloo ranks with half a batch each equal one process with the whole, in value and gradient.

Every objective, through DDP itself, through chunks whose gradients the module averages, and through towers
that are spread over the ranks; with the norm of the batch, prototypes and their assignment.
"""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from lossfeatures import NAMES

from medvl.training.gather import average_gradients, gather, lengthen

WORKER = textwrap.dedent("""
    import json, sys, tempfile
    from datetime import timedelta
    sys.path.insert(0, "tests")
    import torch, torch.distributed as dist, torch.multiprocessing as mp
    from torch.nn.parallel import DistributedDataParallel
    from medvl.alignment import ProjectionConfig
    from medvl.objectives import OBJECTIVES
    from medvl.training.gather import average_gradients
    from medvl.training.sharding import clip_gradients, shard_tower
    from tinymodules import DIM, batch, gradients, module

    NORM = ProjectionConfig(dim=DIM, norm="batch")

    def parts(name, way):
        again = {"activation_checkpointing": True} if way == "sharded chunks" else {}
        return module(name, chunk=3 if "chunks" in way else None, image=again, text=again,
                      projection=NORM if "norm" in way else None).train()

    class Step(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, rows):
            return self.net.training_step(rows, 0)

    def one(name, way, rows, world):
        net = parts(name, way)
        step = Step(net)
        if world > 1 and "sharded" in way:
            for tower in (net.model.image_encoder, net.model.text_encoder):
                shard_tower(tower, device=torch.device("cpu"))
        elif world > 1 and way in ("ddp", "ddp norm"):
            step = DistributedDataParallel(step, find_unused_parameters=True)
        loss = step(batch(rows, views=OBJECTIVES.factory(name).views))
        loss.backward()
        if world > 1 and not way.startswith("ddp"):
            average_gradients(p for p in net.parameters() if not hasattr(p, "full_tensor"))
        if way == "sharded":
            before = clip_gradients(net.parameters(), 0.5) if world > 1 else (
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5))
        else:
            before = torch.zeros(())
        found = gradients(net)
        found = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in found.items()}
        buffers = {n: b for n, b in net.named_buffers() if "running" in n}
        return {"loss": loss.detach(), "norm": before, "gradients": found, "buffers": buffers}

    def rank(number, world, file, cases, results):
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=number, world_size=world,
                                timeout=timedelta(seconds=120))
        for i, (name, way) in enumerate(cases):
            found = one(name, way, slice(4 * number, 4 * number + 4), world)
            if number == 0:
                torch.save(found, f"{results}/{i}.pt")
        dist.destroy_process_group()

    if __name__ == "__main__":
        cases = json.loads(sys.argv[1])
        with tempfile.TemporaryDirectory() as folder:
            start = mp.get_context("fork").Process
            children = [start(target=rank, args=(i, 2, f"{folder}/init", cases, folder)) for i in range(2)]
            [child.start() for child in children]
            [child.join() for child in children]
            answers = []
            for i, (name, way) in enumerate(cases):
                two = torch.load(f"{folder}/{i}.pt", weights_only=True)
                whole = one(name, way, slice(0, 8), 1)
                assert whole["gradients"].keys() == two["gradients"].keys(), (name, way)
                assert whole["buffers"].keys() == two["buffers"].keys()
                ours = whole["gradients"]
                worst = max((ours[n] - two["gradients"][n]).abs().max().item() for n in ours)
                moved = max([(whole["buffers"][n] - two["buffers"][n]).abs().max().item()
                             for n in whole["buffers"]] or [0.0])
                largest = max(value.abs().max().item() for value in ours.values())
                norms = whole["norm"].item(), two["norm"].item()
                answers.append([whole["loss"].item(), two["loss"].item(), worst, largest, moved, *norms])
        print(json.dumps(answers))
""")

CASES = [
    *((name, "ddp") for name in NAMES),
    *((name, "chunks") for name in NAMES),
    *((name, way) for name in ("multi", "symile") for way in ("ddp norm", "chunks norm", "sharded norm")),
    *((name, way) for name in ("clip", "multi") for way in ("sharded", "sharded chunks")),
]


@pytest.fixture(scope="module")
def answers(request):
    done = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps(CASES)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=request.config.rootpath,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, json.loads(done.stdout.strip().splitlines()[-1]), strict=True))


@pytest.mark.parametrize(("name", "way"), CASES)
def test_two_ranks_are_one_process(answers, name, way):
    one, two, worst, largest, moved, norm, their_norm = answers[name, way]
    assert two == pytest.approx(one, rel=2e-6)
    assert largest > 1e-4 and worst < 1e-5 * max(1.0, largest)
    assert moved < 1e-6 and their_norm == pytest.approx(norm, rel=1e-5)


def test_a_single_process_gathers_and_averages_nothing():
    rows = torch.ones(2, 3, requires_grad=True)
    assert gather(rows) is rows
    layer = torch.nn.Linear(1, 1)
    layer.weight.grad = torch.ones(1, 1)
    average_gradients(layer.parameters())
    assert layer.weight.grad.item() == 1.0 and layer.bias.grad is None
    assert lengthen(torch.ones(2), 5).shape == (2,) and lengthen(torch.ones(2, 1), 3).tolist()[0] == [1, 0, 0]
