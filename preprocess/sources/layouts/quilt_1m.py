"""Quilt-1M: histology pictures from videos, articles and posts, with captions in one table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medvl.errors import BadTable
from medvl.preprocess.sources.layouts._files import PICTURES, Listing, find_table
from medvl.preprocess.sources.layouts._pairs import (
    drop_leaving,
    first_copies,
    join,
    look_up,
    make_pairing,
    of_files,
    pictures,
    splits,
)
from medvl.preprocess.sources.layouts._tables import header, read_columns
from medvl.preprocess.sources.pairing import Pairing

NAME = "quilt-1m"
ABOUT = "Quilt-1M, histology pictures with captions; access on request, research only, no commercial use"
MODALITY = "pathology"

_TABLE = r"quilt_1m_lookup\.csv"


def recognise(source: Path) -> bool:
    """Look for ``quilt_1M_lookup.csv`` with the columns image_path and caption."""
    table = find_table(source, _TABLE)
    return table is not None and {"image_path", "caption"} <= set(header(table))


def read(source: Path) -> Pairing:
    """Pair by the name of the picture; several captions of one picture make one text, a line each.

    Pictures of one video or one article share a group, which stands for the patient. Where the official
    split puts a group on both sides, the group loses it. What is marked as no histology is left out.

    Raises:
        BadTable: no table, a damaged one, or no picture.
    """
    table = find_table(source, _TABLE)
    if table is None:
        raise BadTable("the source has no quilt_1M_lookup.csv.", hint="It lies beside the folder of images.")
    listing = Listing.of(source)
    rows = read_columns(table, need=("image_path", "caption"), maybe=("split", "not_histology"))
    rows, unpaired = drop_leaving(rows, "image_path")
    rows = rows.assign(key=rows["image_path"].str.rsplit("/", n=1).str[-1])
    no_histology = set(rows["key"][rows["not_histology"].isin(("1", "1.0", "True"))])
    rows = _one_row_each(rows)
    images = pictures(listing).rename(columns={"name": "key"})
    images = images[images["key"].isin(set(rows["key"]))]
    images, more = first_copies(images, "key", prefer=PICTURES)
    unpaired += more
    images, more = join(images, rows, on="key")
    unpaired += more
    left_out = images["key"].isin(no_histology)
    unpaired += of_files("not_histology", images[left_out])
    images = images[~left_out].rename(columns={"caption": "report"})
    images = images.assign(patient=_group(images["key"]), study=images["key"], split=splits(images["split"]))
    images, notes = _whole_groups(images)
    return make_pairing(
        listing,
        images,
        layout=NAME,
        columns={"image": "image_path", "patient": "image_path", "text": "caption", "split": "split"},
        notes=notes,
        unpaired=unpaired,
    )


def _one_row_each(rows: pd.DataFrame) -> pd.DataFrame:
    """Join the captions of each picture, in the order of the table."""
    several = rows["key"].duplicated(keep=False)
    if not several.any():
        return rows
    lines = rows[several & (rows["caption"] != "")].drop_duplicates(["key", "caption"])
    joined = lines.groupby("key", sort=False)["caption"].agg("\n".join)
    first = rows[~rows["key"].duplicated()]
    return first.assign(caption=look_up(first["key"], joined.to_dict()).where(several, first["caption"]))


def _group(names: pd.Series) -> pd.Series:
    """Return the video or article of each picture where its name tells, else the picture itself."""
    group = names.str.extract(r"^(PMC\d+|.{11}(?=_image_))", expand=False)
    return group.where(group.notna(), names)


def _whole_groups(images: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    known = images[images["split"] != ""].drop_duplicates(["patient", "split"])
    torn = set(known["patient"][known["patient"].duplicated()])
    notes = ["no patients are named: pictures of one video or article stay together where names tell"]
    if torn:
        notes.append(
            f"the official split tears {len(torn)} videos or articles apart: theirs is drawn by the shares"
        )
    return images.assign(split=images["split"].where(~images["patient"].isin(torn), "")), notes
