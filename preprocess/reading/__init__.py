"""From files to images: values in their unit, geometry as stated, never resampled and never windowed."""

from medvl.preprocess.reading.files import kind_of, read_image

__all__ = ["kind_of", "read_image"]
