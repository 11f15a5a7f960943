"""The traps that silently spoil image data: a number and a sentence each; tests name the row they run."""

TRAPS: dict[int | str, str] = {
    1: "slices are ordered by position along the normal, whatever their instance numbers say",
    2: "holes, doubled positions and mixed orientations are refused with their reason",
    3: "localizers are recognised",
    4: "the spacing comes from positions, not from SliceThickness or SpacingBetweenSlices",
    5: "rescale is applied slice by slice, and integral rescale gives integers",
    6: "padding is clipped, never masked where it is equal to the declared value",
    7: "the window comes after the modality values; several windows and none are both fine",
    8: "MONOCHROME1 is inverted exactly once, after the window",
    9: "YBR becomes RGB, and a palette is looked up",
    10: "several frames are a volume only where they say where they lie",
    11: "overlays are not burned into the picture",
    12: "the slope of a NIfTI file is applied exactly once",
    13: "orientation follows the affine: flips and permutations, and LPS is turned to RAS",
    14: "training and inference share one window, kept by the digest of the spec",
    15: "names and text are decoded by the character set of the header",
    16: "structured reports are sources of text",
    17: "a corrupt file costs one record, with a typed error",
    18: "deflated files decode from a path",
    19: "one folder may hold several series",
    "tiff resolution": "the resolution of a raster file is no spacing in the patient",
}
