"""A small model of volumes for the tests of transfer."""

from __future__ import annotations

import torch
from tinyvolumes import SPEC

from medvl.alignment import ProjectionConfig, TowerRecipe, build_model
from medvl.modeldir import LoadedModel
from medvl.specs import ReportSpec, VolumeInput
from medvl.tokens import train_tokeniser

RESNET = {"axes": 3, "widths": [8, 16], "blocks": [1, 1], "stem_px": 3}
INPUT = VolumeInput(size_px=(24, 20, 16), windows=((0.0, 2000.0),))


def loaded_model(*, pool="encoder", image=None, input=INPUT, pixels=SPEC):
    torch.manual_seed(0)
    tokeniser = train_tokeniser(["A nodule in the lung."])
    model = build_model(
        image=image or TowerRecipe(name="resnet", options=RESNET),
        text=TowerRecipe(name="bert", options={"layers": 1, "width": 16, "heads": 2}),
        tokeniser=tokeniser,
        projection=ProjectionConfig(dim=8, image_pool=pool),
    )
    return LoadedModel(model.eval(), pixels, input, ReportSpec(), tokeniser)
