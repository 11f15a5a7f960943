"""Burned-in text: recall and CPU of the detector at several working sizes, and agreement on real films."""

import math
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

import medvl
from medvl.preprocess.reading import burned, read_image
from medvl.records import TextRegion
from medvl.specs import PixelSpec

FILMS = 3
FILM_PX = 2048
HEIGHTS_PX = (7, 10, 14, 20, 28)
LOOKS = ("white", "+60 grey", "+30 grey", "black on plate", "white, turned", "black on plate, turned")
WORDS = ("DOE^JANE 12.03.1954", "MRN 48210377")
WHOLE_PX = (736, 1024, 1536, 2048)
COVERED = 0.8
"""A line counts as found when so much of its area is covered by regions of text."""
NOTES = Path(__file__).resolve().parents[3] / "shared" / "data" / "cxr" / "clinical_notes"
SAMPLE = 60


def wilson(hits: int, n: int) -> str:
    """Return a share with its 95 % interval (Wilson 1927)."""
    if n == 0:
        return "none"
    z, p = 1.959964, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return f"{p:.2f} ({low:.2f} – {high:.2f}, {hits}/{n})"


def letters(words: str, height_px: float, *, turns: int) -> np.ndarray:
    """Return smooth letters, 0 to 1, whose capitals are ``height_px`` high."""
    font = ImageFont.load_default(size=height_px / 0.72)
    left, top, right, bottom = (round(v) for v in font.getbbox(words))
    canvas = Pillow.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), words, 255, font=font)
    return np.rot90(np.asarray(canvas) / 255, turns)


def written(film: np.ndarray, look: str, *, rng: np.random.Generator) -> tuple[np.ndarray, list]:
    """Return a film with every height and word on it, and the boxes."""
    painted, boxes = film.astype(float), []
    turned = look.endswith("turned")
    lines = [(height, words) for height in HEIGHTS_PX for words in WORDS]
    long, wide = film.shape if turned else film.shape[::-1]
    for place, (height, words) in enumerate(lines):
        mask = letters(words, height, turns=1 if turned else 0)
        rows, columns = mask.shape
        across = round((place + 0.5) / len(lines) * wide) - height
        along = 30 + int(rng.integers(0, long - max(rows, columns) - 60))
        top, left = (along, across) if turned else (across, along)
        patch = painted[top : top + rows, left : left + columns]
        if "plate" in look:
            edge = max(2, height // 3)
            painted[top - edge : top + rows + edge, left - edge : left + columns + edge] = 240
            patch[...] = 240 - 230 * mask
        elif "grey" in look:
            patch[...] += int(look[1:3]) * mask
        else:
            patch[...] = patch * (1 - mask) + 250 * mask
        boxes.append((height, top, left, top + rows, left + columns))
    return np.clip(np.rint(painted), 0, 255).astype(np.uint8), boxes


def whole(film: np.ndarray, px: int) -> tuple[TextRegion, ...]:
    """Read the whole film at one size."""
    small = burned._resized(film, min(1.0, px / max(film.shape)))
    found = burned._read(small, burned.MARKERS, origin=(0, 0), whole=small.shape, shape=film.shape)
    return tuple(region for region, _ in found)


WAYS = {f"whole at {px}": lambda film, px=px: whole(film, px) for px in WHOLE_PX}
WAYS["two scales (default)"] = burned.find_text


def recall() -> None:
    """Print recall and cost on synthetic films."""
    with tempfile.TemporaryDirectory() as folder:
        medvl.phantom(folder, n=FILMS, seed=3, size_px=FILM_PX, workers=1)
        spec = PixelSpec(longest_px=FILM_PX)
        files = sorted(Path(folder).rglob("I00.dcm"))[:FILMS]
        films = [spec.apply(read_image(path)) for path in files]
    burned.find_text(films[0][:64, :64])  # load
    rng = np.random.default_rng(0)
    hits: dict = defaultdict(list)
    cost: dict = defaultdict(list)
    false: dict = defaultdict(int)
    for film in films:
        for way, find in WAYS.items():
            start = time.process_time()
            false[way] += sum(region.kind == "text" for region in find(film))
            cost[way, "clean"].append(time.process_time() - start)
        for look in LOOKS:
            painted, boxes = written(film, look, rng=rng)
            for way, find in WAYS.items():
                start = time.process_time()
                regions = find(painted)
                cost[way, "ten lines"].append(time.process_time() - start)
                covered = burned._cover(regions, painted.shape, margin=0.0)
                for height, top, left, bottom, right in boxes:
                    found = covered[top:bottom, left:right].mean() >= COVERED
                    hits[way, height].append(found)
                    hits[way, look].append(found)
    columns = [*HEIGHTS_PX, *LOOKS]
    heads = [f"{h} px" for h in HEIGHTS_PX] + list(LOOKS)
    print("| | " + " | ".join(heads) + " | CPU-s clean | CPU-s ten lines | false on clean |")
    print("|---" * (len(heads) + 4) + "|")
    for way in WAYS:
        cells = [f"{np.mean(hits[way, column]):.2f}" for column in columns]
        seconds = [f"{np.median(cost[way, kind]):.2f}" for kind in ("clean", "ten lines")]
        print(f"| {way} | " + " | ".join([*cells, *seconds]) + f" | {false[way]} |")
    sizes = ", ".join(f"n = {len(hits[way, column])} for {column}" for column in (HEIGHTS_PX[0], LOOKS[0]))
    print(f"{FILMS} films of {FILM_PX} px; {sizes}; heights are those of capitals.")


def agreement() -> None:
    """Print agreement with the column burned_in_text of the clinical notes."""
    if not NOTES.is_dir():
        print("clinical_notes is not here: agreement left out")
        return
    rows = pd.read_csv(NOTES / "images.csv").sample(SAMPLE, random_state=0)
    pairs, seconds = [], []
    for row in rows.itertuples():
        film = PixelSpec(longest_px=FILM_PX).apply(read_image(NOTES / str(row.image)))
        start = time.process_time()
        found = burned.read_text(film)
        seconds.append(time.process_time() - start)
        # the column does not count a lone side letter
        said = any(sum(map(str.isalnum, words)) >= 2 for _, words in found)
        pairs.append((row.burned_in_text == "yes", said))
    both = sum(truth and said for truth, said in pairs)
    print(f"precision {wilson(both, sum(said for _, said in pairs))}")
    print(f"recall {wilson(both, sum(truth for truth, _ in pairs))}, n = {len(pairs)} films")
    quantiles = ", ".join(f"{value:.2f}" for value in np.quantile(seconds, (0.5, 0.9)))
    print(f"CPU-s a film: median and 90th percentile {quantiles}")


def main() -> None:
    """Print both."""
    recall()
    agreement()


if __name__ == "__main__":
    main()
