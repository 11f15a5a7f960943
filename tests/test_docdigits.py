"""DocDigits: what captions say and hide, budgets, disjoint drawings, and bytes that never change."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from medvl.errors import ConfigError
from medvl.mechanisms import docdigits as module
from medvl.mechanisms.complexity import MECHANISM
from medvl.mechanisms.docdigits import ATTRIBUTES, KINDS, SLICES, docdigits, sentence


@pytest.fixture(scope="module")
def high():
    return docdigits(complexity=30, samples=60, seed=1)


def test_twenty_attributes_of_four_kinds():
    assert len(ATTRIBUTES) == len(set(ATTRIBUTES)) == 20
    assert [stop - start for start, stop in SLICES] == [10, 5, 2, 3] == [len(v) for v in KINDS.values()]
    # "small" is no part of another value as a word, the trap of searching for substrings.
    words = [sentence(a).split() for a in range(20)]
    assert all(sum(value in other for other in words) == 1 for _, value in ATTRIBUTES)


def test_a_caption_is_the_set_of_what_the_cells_show(high):
    for caption, cells in zip(high.captions, high.regions, strict=True):
        assert len(caption) == len(set(caption))
        assert set(caption) == {a for cell in cells for a in np.flatnonzero(cell)}
    # Shuffled: not in the order of the attributes.
    assert sum(list(caption) == sorted(caption) for caption in high.captions) <= 1


def test_a_cell_has_one_value_of_a_kind_and_a_size_with_a_shape(high):
    counts = np.stack([high.regions[..., a:b].sum(-1) for a, b in SLICES], -1)
    digit, colour, shape, size = np.moveaxis(counts, -1, 0)
    occupied = high.regions.any(-1)
    assert counts.max() == 1
    assert (digit == occupied).all() and (colour == occupied).all() and (shape == size).all()


@pytest.mark.parametrize(("complexity", "mean"), [(4, 3.5), (16, 15.2), (30, 27.6)])
def test_budget_of_pairs(complexity, mean):
    # A picture of at most c pairs ends when the next cell, of 2 or 4, would not fit: for c = 4 a first cell
    # of 4 (p = .55), or of 2 and then another of 2 (.45 · .45) or none: .55·4 + .45(.45·4 + .55·2) = 3.5.
    # Nine cells have 9 · (2 + .55 · 2) = 27.9 pairs, a little less where 30 cuts off.
    data = docdigits(complexity=complexity, pairs=3000)
    assert 3000 - complexity < data.regions.sum() <= 3000
    assert data.regions.sum((1, 2)).max() <= complexity
    assert data.complexity == pytest.approx(mean, abs=0.6)


def test_budget_of_pictures():
    assert len(docdigits(complexity=4, samples=7)) == len(docdigits(complexity=36, samples=7)) == 7
    empty = docdigits(complexity=36, pairs=3)
    assert len(empty) == 0 and empty.captions == () and empty.images.shape == (0, 84, 84, 3)


def test_pixels_show_the_truth():
    data = docdigits(complexity=16, samples=40, seed=2)
    for cells, truth in zip(data.cells, data.regions, strict=True):
        for cell, attributes in zip(cells.astype(int), truth, strict=True):
            glyph, marker = cell[:15, :15], cell[15:, 15:]
            assert (glyph.max() > 150) == bool(attributes[:10].any())
            assert ((marker == 255).all(-1).sum() > 0) == bool(attributes[15:17].any())
            if attributes[:10].any():
                # The brightest pixel has the colour's strongest channel.
                red, green, blue = glyph.reshape(-1, 3)[glyph.reshape(-1, 3).sum(1).argmax()]
                colour = int(np.flatnonzero(attributes[10:15])[0])
                strong = [(red > blue > 0) and red > 2 * green, green > 2 * red, blue > 2 * red]
                strong += [red > 2 * blue and green > 2 * blue, red > 2 * green and blue > 2 * green]
                assert strong[colour] or colour == 0
            if attributes[15:17].any():
                # A square of side n has n² pixels, a disc some π/4 of that.
                side = (5, 8, 11)[int(np.flatnonzero(attributes[17:])[0])]
                share = (marker == 255).all(-1).sum() / side**2
                assert share == 1.0 if attributes[16] else 0.7 < share < 0.9


def test_parts_show_different_drawings():
    drawings = [set(range(1797)[part]) for part in module.PARTS.values()]
    assert set.union(*drawings) == set(range(1797)) and sum(map(len, drawings)) == 1797
    _drawn, digits = module._glyphs()
    assert np.array_equal(np.sort(digits), np.sort(load_digits().target))
    # Every part has enough drawings of each digit.
    assert min(np.bincount(digits[part]).min() for part in module.PARTS.values()) >= 20


def test_the_bytes_are_frozen():
    digests = [docdigits(complexity=c, samples=24, seed=3).digest[:16] for c in (4, 16, 30)]
    assert digests == ["b4fec0a4cf6857e5", "ba3459e5118cc726", "3897c0a85e7689b5"]
    one = docdigits(complexity=16, samples=5)
    assert one.digest == docdigits(complexity=16, samples=5).digest
    assert one.digest != docdigits(complexity=16, samples=5, seed=1).digest
    assert one.digest != docdigits(complexity=16, samples=5, part="test").digest


def test_refusals():
    with pytest.raises(ConfigError, match=r"complexity is 3\. Allowed: 4 to 36"):
        docdigits(complexity=3, samples=1)
    with pytest.raises(ConfigError, match=r"pairs is None and samples is None.*exactly one"):
        docdigits(complexity=4)
    with pytest.raises(ConfigError, match="pairs is 4 and samples is 1"):
        docdigits(complexity=4, pairs=4, samples=1)
    with pytest.raises(ConfigError, match="complexity is 37"):
        docdigits(complexity=37, pairs=4)


@pytest.mark.slow
def test_the_mechanism_appears():
    # One and a half minutes: captions of many pairs teach less, and ViLLA's pairs win back over half.
    values = MECHANISM.run(0, quick=True)
    assert all(effect.right(effect.of(values)) for effect in MECHANISM.effects)
    assert values["villa_f1"] > 0.8 and values["recovered_share"] > 0.5
