"""Two gloo ranks with half a batch each equal one process with the whole, in value and gradient."""

import json
import subprocess
import sys
import textwrap

import pytest

WORKER = textwrap.dedent("""
    import json, sys, tempfile
    from datetime import timedelta
    import torch, torch.distributed as dist, torch.multiprocessing as mp
    from medvl.alignment import ProjectionConfig, TowerRecipe, build_model
    from medvl.data import positives
    from medvl.objectives import OBJECTIVES
    from medvl.objectives.sentences import sentence_keys
    from medvl.tokens import train_tokeniser
    from medvl.training.gather import gather, gather_features
    from dataclasses import replace

    torch.set_num_threads(1)

    def parts(name):
        torch.manual_seed(0)
        options = {"widths": [8, 16], "blocks": [1, 1], "stem_px": 3, "norm": "group"}
        image = TowerRecipe(name="resnet", options=options)
        text = TowerRecipe(name="bert", options={"layers": 1, "width": 16, "heads": 2, "dropout": 0.0})
        tokeniser = train_tokeniser(["small left effusion no change heart"] * 9)
        objective = OBJECTIVES.build(name, {} if name == "clip" else {"prototypes": 8}, 8)
        objective.on_epoch(5)
        model = build_model(image=image, text=text, tokeniser=tokeniser, projection=ProjectionConfig(dim=8),
                            local=objective.needs_local)
        return torch.nn.ModuleDict({"model": model, "objective": objective}), tokeniser

    def loss_of(net, tokeniser, rows, world):
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(6, 1, 16, 16, generator=generator)[rows]
        reports = [["no change"], ["small left effusion", "heart"], ["heart"], ["no change"],
                   ["left effusion", "no change", "small heart left"], ["effusion"]]
        tokens, mask = (torch.from_numpy(a) for a in tokeniser.encode([reports[i] for i in rows]))
        study = torch.tensor([0, 1, 2, 3, 4, 4])[rows]
        report = torch.tensor([0, 1, 2, 0, 4, 5])[rows]
        labels = torch.tensor([[0.], [1.], [1.], [0.], [1.], [1.]])[rows]
        image = net["model"].encode_image(images, torch.ones(len(rows), 16, 16, dtype=torch.bool))
        text = net["model"].encode_text(tokens, mask)
        text = replace(text, sentence_keys=sentence_keys(tokens, mask, sentences=text.sentences.shape[1]))
        if world > 1:
            image, text = gather_features(image), gather_features(text)
            study, report, labels = gather(study), gather(report), gather(labels)
        return net["objective"](image, text, positives(study, report, labels)).total

    def gradients(net):
        return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}

    def rank(number, world, file, names, results):
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=number, world_size=world,
                                timeout=timedelta(seconds=60))
        for name in names:
            net, tokeniser = parts(name)
            rows = list(range(3)) if number == 0 else list(range(3, 6))
            loss = loss_of(net, tokeniser, rows, world)
            loss.backward()
            found = gradients(net)
            for value in found.values():  # what DDP does
                dist.all_reduce(value)
                value /= world
            if number == 0:
                torch.save({"loss": loss.detach(), "gradients": found}, f"{results}/{name}.pt")
        dist.destroy_process_group()

    if __name__ == "__main__":
        names = json.loads(sys.argv[1])
        with tempfile.TemporaryDirectory() as folder:
            start = mp.get_context("fork").Process
            children = [start(target=rank, args=(i, 2, f"{folder}/init", names, folder)) for i in range(2)]
            [child.start() for child in children]
            [child.join() for child in children]
            answers = {}
            for name in names:
                two = torch.load(f"{folder}/{name}.pt", weights_only=True)
                net, tokeniser = parts(name)
                loss = loss_of(net, tokeniser, list(range(6)), 1)
                loss.backward()
                one = gradients(net)
                assert one.keys() == two["gradients"].keys()
                worst = max((one[n] - two["gradients"][n]).abs().max().item() for n in one)
                largest = max(value.abs().max().item() for value in one.values())
                answers[name] = [loss.item(), two["loss"].item(), worst, largest]
        print(json.dumps(answers))
""")


@pytest.fixture(scope="module")
def answers():
    names = ["clip", "mgca", "multi"]
    done = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps(names)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("name", ["clip", "mgca", "multi"])
def test_two_ranks_are_one_process(answers, name):
    one, two, worst, largest = answers[name]
    assert two == pytest.approx(one, rel=1e-6)
    assert largest > 1e-4 and worst < 1e-5 * max(1.0, largest)
