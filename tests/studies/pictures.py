"""The picture of the README: for each finding the first held-out frontal film that has it alone, and its map.

python -m tests.studies.pictures RUN STORE docs/pictures/heat_maps.png
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import medvl
from medvl.heads.grounding import phrase_map
from medvl.store import Store

PHRASES = {
    "consolidation": "consolidation",
    "pleural_effusion": "pleural effusion",
    "pneumothorax": "pneumothorax",
    "cardiomegaly": "cardiomegaly",
    "interstitial_edema": "interstitial edema",
    "nodule": "pulmonary nodule",
}


def main() -> None:
    """Draw one row of films with the map and the true box over each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    model, store = medvl.load(asked.run), Store(asked.store)
    figure, axes = plt.subplots(1, len(PHRASES), figsize=(13.2, 3.0), facecolor="black")
    for axis, (finding, phrase) in zip(axes, PHRASES.items(), strict=True):
        record = next(
            record
            for record in store.records
            if record.split == "test"
            and record.view != "LATERAL"
            and [name for name, state in record.labels.items() if state == "present"] == [finding]
            and record.boxes
        )
        film = store.pixels(record)
        heat = phrase_map(model.loaded, film, list(model.prompts.of(finding).positive))
        low, high = np.nanpercentile(heat, (50, 99.5))
        axis.imshow(film, cmap="gray", vmin=0, vmax=255)
        strength = np.clip((heat - low) / (high - low), 0, 1)
        axis.imshow(strength, cmap="inferno", alpha=np.nan_to_num(0.65 * strength), vmin=0, vmax=1)
        for box in record.boxes:
            corner, width, height = (box.x0, box.y0), box.x1 - box.x0, box.y1 - box.y0
            axis.add_patch(
                plt.Rectangle(corner, width, height, fill=False, edgecolor="#58c4cc", linewidth=1.6)
            )
        axis.set_title(f"“{phrase}”", color="white", fontsize=11)
        axis.axis("off")
    figure.text(
        0.5, 0.015, "synthetic films, held-out patients · colour: similarity to the phrase · box: truth",
        ha="center", color="#9aa8b6", fontsize=9,
    )  # fmt: skip
    figure.subplots_adjust(left=0.005, right=0.995, top=0.88, bottom=0.07, wspace=0.03)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(asked.out, dpi=110, facecolor="black")


if __name__ == "__main__":
    main()
