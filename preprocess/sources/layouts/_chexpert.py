"""What CheXpert and CheXpert Plus have in common: images found by patient, study and view."""

from __future__ import annotations

import pandas as pd

from medvl.preprocess.sources.layouts._files import PICTURES, Listing
from medvl.preprocess.sources.layouts._pairs import first_copies, pictures
from medvl.preprocess.sources.pairing import Unpaired

__all__ = ["find_views", "view_key", "views"]


def view_key(paths: pd.Series) -> pd.Series:
    """Return ``patient/study/view`` of each path, whatever lies before it and whatever its suffix.

    Examples:
        >>> view_key(pd.Series(["CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"])).tolist()
        ['patient00001/study1/view1_frontal']
    """
    key = paths.astype(object).str.extract(r"(?:^|[/\\])(patient\d+[/\\]study\d+[/\\][^/\\]+)$", expand=False)
    return key.fillna("").str.replace("\\", "/", regex=False).str.replace(r"\.[A-Za-z]+$", "", regex=True)


def find_views(listing: Listing) -> tuple[pd.DataFrame, list[Unpaired]]:
    """Return the images with key, patient and study; DICOM before PNG before JPEG where there are several."""
    images = pictures(listing)
    images["key"] = view_key(images["relative"])
    images = images[images["key"] != ""]
    images["patient"] = images["key"].str.split("/").str[0]
    images["study"] = images["key"].str.rsplit("/", n=1).str[0]
    return first_copies(images, "key", prefer=PICTURES)


def views(images: pd.DataFrame, *, plane: str, direction: str) -> pd.Series:
    """Return the view: AP or PA where the table says so, else frontal or lateral."""
    return images[direction].where(images[direction] != "", images[plane])
