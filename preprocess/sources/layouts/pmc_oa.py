"""Figures of PubMed Central with captions: PMC-OA, the BiomedCLIP pipeline, or a table of pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from medvl.errors import BadTable, InputError
from medvl.preprocess.sources.layouts._files import PICTURES, Listing, find_table
from medvl.preprocess.sources.layouts._pairs import (
    drop_leaving,
    first_copies,
    join,
    make_pairing,
    pictures,
    splits,
)
from medvl.preprocess.sources.layouts._tables import header, read_columns, read_json_lines
from medvl.preprocess.sources.pairing import Pairing

NAME = "pmc-oa"
ABOUT = "figures of PubMed Central's open access subset with captions; the licence is that of each article"
MODALITY = "any"

_LINES = r"(?:pmc.*\.jsonl|pubmed_parsed_data.*\.jsonl?)"
_TABLE = r"pmc.*\.csv"
_IMAGE = ("image", "image_path", "img_path", "graphic_ref")
_TEXT = ("caption", "fig_caption", "text")
_ARTICLE = ("pmcid", "pmc_id", "pmc", "PMCID", "PMC_ID")


def recognise(source: Path) -> bool:
    """Look for ``pmc*.jsonl``, ``pubmed_parsed_data.jsonl`` or ``pmc*.csv`` with images and captions."""
    lines = find_table(source, _LINES)
    if lines is not None:
        try:
            first = next(read_json_lines(lines), (0, {}))[1]
        except InputError:
            return False
        return "figures" in first or (_first(first, _IMAGE) != "" and _first(first, _TEXT) != "")
    table = find_table(source, _TABLE)
    names = set(header(table)) if table is not None else set()
    return bool(names.intersection(_IMAGE) and names.intersection(_TEXT))


def read(source: Path) -> Pairing:
    """Pair by the name of the figure, and by its folder where two figures share a name.

    The article stands for the patient: no article is in two splits. Figures of one article with one caption
    share a study.

    Raises:
        BadTable: no table, a damaged one, or no figure.
    """
    listing = Listing.of(source)
    rows = _rows(source)
    rows, unpaired = drop_leaving(rows, "image")
    rows, images = _keys(rows, pictures(listing))
    images = images[images["key"].isin(set(rows["key"]))]
    images, more = first_copies(images, "key", prefer=PICTURES)
    unpaired += more
    images, more = join(images, rows, on="key", report="report")
    article = images["article"].str.extract(r"(\d+)", expand=False).radd("PMC")
    article = article.where(article.notna(), images["image"].str.extract(r"(PMC\d+)", expand=False))
    lone = article.isna()
    images["patient"] = article.where(~lone, images["key"])
    images["study"] = images.groupby(["patient", "report"], sort=False)["key"].transform("min")
    notes = ["the article stands for the patient"]
    if lone.any():
        notes.append(f"no article is known for {int(lone.sum())} figures: each counts as one of its own")
    return make_pairing(
        listing,
        images,
        layout=NAME,
        columns={"image": "image", "patient": "PMC id", "text": "caption"},
        notes=notes,
        unpaired=unpaired + more,
    )


def _rows(source: Path) -> pd.DataFrame:
    lines, table = find_table(source, _LINES), find_table(source, _TABLE)
    if lines is not None:
        found = list(itertools.chain.from_iterable(_pairs(n, record) for n, record in read_json_lines(lines)))
        frame = pd.DataFrame(found, columns=["line", "image", "report", "article", "split"], dtype=object)
        rows = frame.set_index("line")
    elif table is not None:
        names = header(table)
        image = next((name for name in _IMAGE if name in names), "image")
        text = next((name for name in _TEXT if name in names), "caption")
        article = next((name for name in _ARTICLE if name in names), "pmcid")
        rows = read_columns(table, need=(image, text), maybe=(article, "split")).rename(
            columns={image: "image", text: "report", article: "article"}
        )
    else:
        raise BadTable(
            "the source has no table of figures and captions.", hint="Call it pmc.jsonl or pmc.csv."
        )
    return rows[rows["image"] != ""].assign(split=splits(rows["split"]))


def _pairs(line: int, record: dict[str, Any]) -> Iterator[tuple[int, str, str, str, str]]:
    """Return the pairs of a line: one, or the figures of an article."""
    article = _first(record, _ARTICLE)
    figures = record.get("figures")
    for figure in figures if isinstance(figures, list) else [record]:
        if isinstance(figure, dict):
            yield (
                line,
                _first(figure, _IMAGE),
                _first(figure, _TEXT),
                article,
                str(record.get("split") or ""),
            )


def _first(record: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((str(record[name]).strip() for name in names if record.get(name)), "")


def _keys(rows: pd.DataFrame, images: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Name figures by file, or by folder and file where the table has the same file name twice."""
    for parts in (1, 2):
        key = rows["image"].str.replace("\\", "/", regex=False).str.split("/").str[-parts:].str.join("/")
        rows = rows.assign(key=key)
        if rows.drop_duplicates("image")["key"].is_unique:
            break
    return rows, images.assign(key=images["relative"].str.split("/").str[-parts:].str.join("/"))
