"""Image-only pre-training on films of children: bacterial against viral, beside random and ImageNet towers.

    python -m tests.studies.selfdistil FOLDER OUT --steps 400

``FOLDER`` holds ``images.csv`` (columns image, patient_id, etiology) and the pictures. The films of training
patients, normal ones too, pre-train the tower of the recipe ``dino``. A linear probe at 1, 10 and 100 % of
patients then reads frozen towers at one size, all for the same held-out patients, whom none has seen.
"""

import argparse
from pathlib import Path

SHARES = (0.01, 0.1, 1.0)


def films_of(folder):
    """The rows of ``images.csv`` and which of them are held out, by patient."""
    import pandas as pd

    from medvl.splits import split_of

    table = pd.read_csv(folder / "images.csv")
    return table, table.patient_id.map(lambda patient: split_of(patient, seed=0)).eq("test").to_numpy()


def prepared(folder, store):
    """A store of the films that are not held out, without a word; made once."""
    import numpy as np
    from PIL import Image

    from medvl.records import Record
    from medvl.specs import PixelSpec, ReportSpec, text_hash
    from medvl.store import Store
    from tests.tinystore import write_store

    if not (store / "store.json").exists():
        table, held = films_of(folder)
        samples = []
        for number, row in enumerate(table[~held].itertuples()):
            film = np.asarray(Image.open(folder / row.image).convert("L"))
            name = f"r{number:05d}"
            record = Record(
                record_id=name, study_id=name, patient_id=row.patient_id, modality="cxr", split="train",
                source_kind="raster", report="", retrieval=(), generation=(), text_hash=text_hash(""),
                pixel_hash=name, pixel_digest=PixelSpec().digest, report_digest=ReportSpec().digest,
                shape=film.shape, dtype="uint8", source_shape=film.shape, labels={},
            )  # fmt: skip
            samples.append((record, film))
        (store / "shards").mkdir(parents=True, exist_ok=True)
        write_store(store, samples)
    return Store(store)


def towers(store, out, overrides):
    """Name, tower and input of each row."""
    import torch

    from medvl import recipes
    from medvl.encoders.image import build_image_encoder
    from medvl.training.selfdistil.run import pretrain
    from medvl.training.start import start_of

    recipe = recipes.resolve("dino", overrides)
    run = out / "run"
    pretrain(store, run, recipe=recipe, progress=lambda done, total, message: print(done, total, flush=True))
    torch.manual_seed(0)
    options = {"channels": recipe.input.channels} | recipe.image.options
    yield "random tower", build_image_encoder(recipe.image.name, options), recipe.input
    found = start_of(run / "tower", side="image", name=recipe.image.name)
    yield (
        "image-only pre-training",
        build_image_encoder(recipe.image.name, options).load_weights(found.tensors),
        recipe.input,
    )
    starter = recipes.resolve("starter", [f"input.size_px={list(recipe.input.size_px)}"])
    yield (
        "ImageNet features (EfficientNet-Lite0)",
        build_image_encoder("efficientnet_lite0", {}),
        starter.input,
    )


def probe(tower, spec, folder):
    """AUROC of bacterial against viral by share of the training patients."""
    import numpy as np
    import torch
    from PIL import Image

    from medvl.evaluation.probe import linear_probe

    table, held = films_of(folder)
    ill = table.etiology.isin(["bacterial", "viral"]).to_numpy()
    table, held = table[ill], held[ill]
    paths, vectors = [folder / name for name in table.image], []
    tower.eval()
    with torch.inference_mode():
        for start in range(0, len(paths), 64):
            films = [spec.apply(np.asarray(Image.open(p).convert("L"))) for p in paths[start : start + 64]]
            images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*films, strict=True))
            vectors.append(tower(images, masks).pooled.numpy())
    found = np.concatenate(vectors)
    truth, people = table.etiology.eq("bacterial").to_numpy(), table.patient_id.to_numpy()
    return linear_probe(
        found[~held], truth[~held], people[~held],
        test=found[held], test_truth=truth[held], test_groups=people[held], shares=SHARES, resamples=500,
    ).numbers  # fmt: skip


def main() -> None:
    """Prepare and pre-train once, then probe each tower; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    store = asked.out / "store"
    prepared(asked.folder, store)
    lines = ["| tower | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |", "|---" * 4 + "|"]
    overrides = [f"schedule.steps={asked.steps}", "machine.accelerator=cpu", *asked.overrides]
    for name, tower, spec in towers(store, asked.out, overrides):
        numbers = probe(tower, spec, asked.folder)
        cells = [f"{numbers[s].value:.3f} ({numbers[s].low:.3f}–{numbers[s].high:.3f})" for s in SHARES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    (asked.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
