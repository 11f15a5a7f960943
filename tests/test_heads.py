"""Zero-shot prompts and heat maps: hand-made embeddings, known geometry."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.errors import ConfigError, UsageError
from medvl.heads.grounding import cell_map, heat_map
from medvl.heads.zeroshot import Prompts, ZeroShot, prompt_vector, read_prompts
from medvl.records import Box
from medvl.specs import InputSpec

PROMPTS = Prompts.model_validate(
    {
        "version": "t-1",
        "template": {"positive": ["{finding}."], "negative": ["no {finding}."]},
        "findings": {"nodule": {"positive": ["a nodule", "a mass"], "negative": ["clear"]}},
    }
)


TABLE = {
    "a nodule": (2.0, 0, 0),
    "a mass": (0, 5.0, 0),
    "clear": (0, 0, 1.0),
    "rare thing.": (1.0, 0, 0),
    "no rare thing.": (-1.0, 0, 0),
}


class Words:
    """A text tower by look-up; it is a model of this test, not a stand-in for one of ours."""

    def embed_texts(self, texts):
        return np.array([TABLE[text] for text in texts], np.float32)


def test_score_is_the_difference_of_cosines_with_the_mean_of_unit_prompts():
    scorer = ZeroShot(Words(), PROMPTS, ["nodule", "rare_thing"])
    scores = scorer.scores(np.array([[3.0, 3.0, 0.0], [0, 0, 2.0], [-1.0, 0, 0]], np.float32))
    # (1,0,0) and (0,1,0) average to a unit vector at 45 degrees whatever their lengths; against is (0,0,1).
    half = np.sqrt(0.5)
    np.testing.assert_allclose(scores[:, 0], [1.0, -1.0, -half], atol=1e-7)
    np.testing.assert_allclose(scores[:, 1], [2 * half, 0.0, -2.0], atol=1e-7)
    assert scorer.templated == ("rare_thing",)
    with pytest.raises(UsageError, match="0 findings"):
        ZeroShot(Words(), PROMPTS, [])


def test_opposite_prompts_have_no_direction_and_score_zero():
    assert prompt_vector(np.array([[1.0, 0], [-3.0, 0]])).tolist() == [0.0, 0.0]


def test_prompts_change_their_digest_with_any_word():
    other = PROMPTS.model_copy(update={"version": "t-2"})
    assert PROMPTS.digest != other.digest and PROMPTS.digest == PROMPTS.model_copy().digest


def test_the_prompts_that_ship_cover_phantoms_and_chexpert(repository_prompts):
    phantom = "nodule consolidation pleural_effusion pneumothorax cardiomegaly interstitial_edema".split()
    chexpert = (
        "no_finding enlarged_cardiomediastinum cardiomegaly lung_opacity lung_lesion edema consolidation "
        "pneumonia atelectasis pneumothorax pleural_effusion pleural_other fracture support_devices"
    ).split()
    assert len(chexpert) == 14
    assert not set(phantom + chexpert + ["covid_19"]) - set(repository_prompts.findings)
    assert repository_prompts.of("e_coli").positive[0] == "e coli."


@pytest.fixture
def repository_prompts():
    from importlib import resources

    return read_prompts(resources.files("medvl.recipes.cxr") / "prompts.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "holds list"),
        ("version: a\ntemplates: {}", "no key 'templates'.*'template'"),
        ("version: a\ntemplate: {positive: [x], negative: []}", r"template\.negative"),
        (
            "version: a\ntemplate: {positive: [x], negative: [y]}\nfindings: {f: {positive: [x]}}",
            r"f\.negative",
        ),
    ],
)
def test_prompt_files_that_break_the_schema_are_refused(tmp_path, text, message):
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prompts(path)


def test_cells_are_cosines_and_nan_off_the_film():
    regions = np.array([[1.0, 0], [0, 2.0], [3.0, 3.0], [-1.0, 0]], np.float32)
    cells = cell_map(
        regions, np.array([2.0, 0], np.float32), grid=(2, 2), mask=np.array([True, True, True, False])
    )
    np.testing.assert_allclose(cells, [[1, 0], [np.sqrt(0.5), np.nan]], atol=1e-7)
    with pytest.raises(UsageError, match=r"\(3, 2\) does not hold 4 regions"):
        cell_map(regions, np.ones(2), grid=(3, 2), mask=np.ones(4, bool))


def test_constant_maps_stay_constant_at_the_edge_of_the_film():
    cells = np.full((6, 6), 0.7)
    cells[:, :2] = np.nan  # the bars of a letterboxed portrait film
    for sigma in (0.0, 0.25):
        heat = heat_map(cells, input=InputSpec(size_px=(96, 96)), shape=(96, 32), sigma=sigma)
        assert heat.shape == (96, 32)
        np.testing.assert_allclose(heat, 0.7, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(40, 200), st.integers(40, 200), st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_a_hot_cell_comes_back_to_where_its_pixels_were(height, width, u, v):
    spec = InputSpec(size_px=(64, 64))
    x, y = u * width, v * height  # a point of the stored film
    placed = spec.place_box(Box("f", x, y, x, y), (height, width))
    cells = np.zeros((16, 16))
    cells[int(placed.y0 // 4), int(placed.x0 // 4)] = 1.0
    heat = heat_map(cells, input=spec, shape=(height, width), sigma=0.0)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    scale = spec.placement((height, width))[0]
    # Within one cell (4 tensor pixels) and one stored pixel.
    assert abs(row + 0.5 - y) <= 4 / scale + 1 and abs(column + 0.5 - x) <= 4 / scale + 1


def test_smoothing_is_that_of_a_gaussian_of_the_given_cells():
    cells = np.zeros((21, 21))
    cells[10, 10] = 1.0
    heat = heat_map(cells, input=InputSpec(size_px=(21, 21)), shape=(21, 21), sigma=1.5 / 21)
    # One cell is one pixel here: the profile falls as exp(-d²/2σ²).
    np.testing.assert_allclose(heat[10, 12] / heat[10, 10], np.exp(-4 / 4.5), rtol=1e-3)
