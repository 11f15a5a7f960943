"""Two views of a study in a batch: which pictures, words and rows; and the columns made by functions."""

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvl.data import Augment, BatchOrder, BatchStream, PairDataset, in_order, positives
from medvl.data.views import plane, two_images, two_texts
from medvl.errors import UsageError
from medvl.records import Record, Report, Section, Sentence
from medvl.specs import InputSpec, PixelSpec, ReportSpec, text_hash
from medvl.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from tinystore import write_store

INPUT = InputSpec(size_px=(16, 16), mean=(0.3,), std=(0.2,))
FULL = [
    ("indication", "Cough for {i} days."),
    ("findings", "Heart is normal in {i}."),
    ("findings", "Lungs are clear in {i}."),
    ("impression", "Nothing acute in {i}."),
]
PLAIN = [("findings", f"Line {k} of {{i}}.") for k in range(5)]
SINGLE = [("findings", "Only one line.")]
STUDIES = [
    (["LATERAL", "PA"], FULL),
    (["AP"], FULL),
    (["PA", "AP", "LL"], PLAIN),
    ([None, "LATERAL"], SINGLE),
    (["PA", "PA", "AP"], FULL),
    ([None], PLAIN),
    (["LL"], PLAIN),
]
"""Views of the images of each study, and its report."""


def report_of(lines, i):
    """A report with a heading before each section, its spans found by counting letters."""
    text, sections, sentences = "", [], []
    for name, group in itertools.groupby(lines, key=lambda line: line[0]):
        text += f"{name.upper()}: "
        start = len(text)
        for _, words in group:
            first = len(text)
            text += words.format(i=i)
            sentences.append(Sentence(first, len(text), name))
            text += " "
        sections.append(Section(name, start, len(text)))
    return Report(text, tuple(sections), tuple(sentences))


def records():
    spec, random = ReportSpec(), np.random.default_rng(0)
    for i, (views, lines) in enumerate(STUDIES):
        report = report_of(lines, i)
        for k, view in enumerate(views):
            yield (
                Record(
                    record_id=f"r{i}{k}",
                    study_id=f"s{i}",
                    patient_id=f"p{i}",
                    modality="cxr",
                    split="train",
                    source_kind="raster",
                    report=report.text,
                    sections=report.sections,
                    sentences=report.sentences,
                    retrieval=spec.render(report, "retrieval"),
                    generation=spec.render(report, "generation"),
                    text_hash=text_hash(report.text),
                    pixel_hash=f"{i}{k}",
                    pixel_digest=PixelSpec().digest,
                    report_digest=spec.digest,
                    shape=(16, 16),
                    dtype="uint8",
                    source_shape=(16, 16),
                    view=view,
                ),
                random.integers(0, 255, (16, 16)).astype(np.uint8),
            )


def write(path, samples):
    (path / "shards").mkdir(parents=True)
    write_store(path, samples)
    return Store(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("views") / "store", list(records()))


def two(store, **options):
    return PairDataset(store, "train", input=INPUT, views=2, **options)


def encode(reports):
    """The number of letters of each sentence, one token each."""
    width = max(len(report) for report in reports)
    tokens = np.zeros((len(reports), width), np.int64)
    for i, report in enumerate(reports):
        tokens[i, : len(report)] = [len(sentence) for sentence in report]
    return tokens, np.where(tokens > 0, np.arange(1, width + 1), 0)


def shown(pairs, key):
    """The ids of the records whose pictures the two rows of a study show, by comparing the pixels."""
    found = []
    for pair in pairs.pairs([key]):
        matches = [
            record.record_id
            for record in pairs.records
            if np.array_equal(INPUT.apply(pairs.store.pixels(record))[0], pair.image)
        ]
        found.append(matches[0])
    return found


# --- pictures -----------------------------------------------------------------------------------


def test_frontal_comes_first_and_lateral_second(store):
    pairs = two(store)
    assert len(pairs) == len(STUDIES) and len(pairs.records) == 13
    assert shown(pairs, (0, 0)) == ["r01", "r00"]  # listed the other way round
    assert shown(pairs, (0, 3)) == ["r30", "r31"]  # a view that is not stated before a lateral one
    assert {tuple(shown(pairs, (epoch, 2))) for epoch in range(20)} == {("r20", "r22"), ("r21", "r22")}


def test_three_frontal_images_are_drawn_two_at_a_time(store):
    pairs = two(store)
    drawn = {tuple(shown(pairs, (epoch, 4))) for epoch in range(60)}
    assert drawn == set(itertools.permutations(["r40", "r41", "r42"], 2))


def test_a_single_image_is_shown_twice_and_said_to_be(store):
    plain = two(store).pairs([(0, 1)])
    assert np.array_equal(plain[0].image, plain[1].image)
    assert [pair.image_present for pair in plain] == [True, False]
    moved = two(store, augment=Augment()).pairs([(0, 1)])
    assert not np.array_equal(moved[0].image, moved[1].image)
    batch = two(store).batch([(0, 0), (0, 1), (0, 6)], encode=encode)
    assert batch.image_present.tolist() == [True, True, True, False, True, False]
    assert PairDataset(store, "train", input=INPUT).batch([(0, 0)], encode=encode).image_present is None


@given(
    st.lists(st.sampled_from(["PA", "AP", None, "LL", "OBLIQUE"]), min_size=1, max_size=5), st.integers(0, 9)
)
def test_the_second_image_is_another_one_and_never_more_frontal(views, seed):
    first, second = two_images(views, np.random.default_rng(seed))
    planes = [plane(view) for view in views]
    assert planes[first] == min(planes)
    assert (first == second) == (len(views) == 1)
    if len(views) > 1:
        assert planes[second] == max(planes[:first] + planes[first + 1 :]) >= planes[first]


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["retrieval", "generation"])
def test_findings_and_impression_are_the_two_texts(store, view):
    first, second = two(store, view=view).pairs([(0, 0)])
    assert first.sentences == ("Heart is normal in 0.", "Lungs are clear in 0.")
    assert second.sentences == ("Nothing acute in 0.",)  # and nobody reads the indication
    assert first.report == second.report and first.study == second.study


def test_without_an_impression_two_halves_are_drawn_each_epoch(store):
    pairs = two(store)
    said = pairs.records[pairs.looks([(0, 5)])[0].text].retrieval
    drawn = set()
    for epoch in range(20):
        first, second = (pair.sentences for pair in pairs.pairs([(epoch, 5)]))
        assert (len(first), len(second)) == (3, 2) and set(first) | set(second) == set(said)
        assert list(first) == sorted(first, key=said.index)  # in the order of the report
        drawn.add(first)
    assert len(drawn) > 5
    one, again = (pair.sentences for pair in pairs.pairs([(0, 3)]))
    assert one == again == ("Only one line.",)


def test_order_and_number_of_sentences_apply_to_each_text(store):
    pairs = two(store, order="shuffled", most=1)
    texts = {tuple(pair.sentences for pair in pairs.pairs([(epoch, 0)])) for epoch in range(20)}
    assert texts == {
        (("Heart is normal in 0.",), ("Nothing acute in 0.",)),
        (("Lungs are clear in 0.",), ("Nothing acute in 0.",)),
    }


@given(st.lists(st.sampled_from(["findings", "impression", "history", ""]), min_size=1), st.integers(0, 9))
def test_two_texts_share_no_sentence_and_are_never_empty(sections, seed):
    first, second = two_texts(sections, np.random.default_rng(seed))
    assert first and second
    if {"findings", "impression"} <= set(sections):
        assert {sections[i] for i in first} == {"findings"} and {sections[i] for i in second} == {
            "impression"
        }
    elif len(sections) > 1:
        assert sorted(first + second) == list(range(len(sections)))
        assert len(first) - len(second) in (0, 1)


def test_a_view_whose_sections_are_not_known_is_cut_in_halves(tmp_path):
    samples = [
        (
            dataclasses.replace(record, rewritten=("A.", "B.", "C."), retrieval=record.retrieval[1:]),
            pixels,
        )
        for record, pixels in records()
    ]
    store = write(tmp_path / "store", samples)
    for view, said in (("rewritten", ("A.", "B.", "C.")), ("retrieval", samples[0][0].retrieval)):
        halves = {
            tuple(pair.sentences for pair in two(store, view=view).pairs([(epoch, 0)])) for epoch in range(20)
        }
        assert len(halves) > 1
        assert all(sorted(first + second) == sorted(said) for first, second in halves)


# --- batches ------------------------------------------------------------------------------------


def test_rows_of_a_study_are_neighbours_and_positives_of_each_other(store):
    batch = two(store).batch([(0, item) for item in range(7)], encode=encode)
    assert len(batch.images) == len(batch.tokens) == 14
    assert torch.equal(batch.study[0::2], batch.study[1::2]) and len(set(batch.study.tolist())) == 7
    assert torch.equal(batch.report[0::2], batch.report[1::2])
    matrix = positives(batch.study, batch.report, batch.labels, mode="same").rows(0, 14)
    assert torch.equal(matrix, torch.eye(7).repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_an_epoch_visits_each_study_once(store):
    pairs = two(store)
    order = BatchOrder(len(pairs), size=2, seed=0)
    stream = BatchStream(pairs, order=order, encode=encode, start=0, stop=3)
    studies = torch.cat([batch.study for batch in stream])
    assert len(studies) == 12 and len(set(studies.tolist())) == 6  # 7 studies, the last one waits
    everything = torch.cat([batch.study for batch in in_order(pairs, encode=encode, size=3)])
    assert len(everything) == 14 and len(set(everything.tolist())) == 7


def same_batch(a, b):
    values = [(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a)]
    return all(x is y if x is None or y is None else torch.equal(x, y) for x, y in values)


def parts(sentences):
    return np.array([1 + len(sentence) % 3 for sentence in sentences], np.int64)


def bank(texts):
    vectors = np.array([[len(text), sum(map(len, text))] for text in texts], np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_two_views_resumes_anywhere_with_the_same_bits(store, workers):
    pairs = two(store, augment=Augment(), order="shuffled", cache_mb=0, parts=parts, bank=bank)
    options = {"order": BatchOrder(len(pairs), size=3, seed=0), "encode": encode, "stop": 6}
    plain = list(BatchStream(pairs, start=0, **options))
    for start in (0, 3):  # 2 batches an epoch: 3 is the middle of one
        tail = list(BatchStream(pairs, start=start, workers=workers, **options))
        assert all(map(same_batch, plain[start:], tail)) and len(tail) == 6 - start
    assert not torch.equal(plain[0].images, plain[2].images)


def test_ranks_get_whole_studies(store):
    pairs = two(store, parts=parts)
    options = {"order": BatchOrder(len(pairs), size=4, seed=0), "encode": encode, "start": 1, "stop": 2}
    whole = next(iter(BatchStream(pairs, **options)))
    ranks = [next(iter(BatchStream(pairs, rank=rank, world=2, **options))) for rank in range(2)]
    assert torch.equal(whole.images, torch.cat([part.images for part in ranks]))
    assert torch.equal(whole.study, torch.cat([part.study for part in ranks]))
    assert all(torch.equal(part.study[0::2], part.study[1::2]) for part in ranks)


# --- columns made by functions ------------------------------------------------------------------


@pytest.mark.parametrize("views", [1, 2])
def test_parts_fill_a_column_for_each_sentence_that_is_read(store, views):
    pairs = PairDataset(store, "train", input=INPUT, views=views, parts=parts)
    keys = [(0, item) for item in range(len(pairs))]
    batch = pairs.batch(keys, encode=encode)
    for row, pair in zip(batch.sentence_parts.tolist(), pairs.pairs(keys), strict=True):
        expected = parts(pair.sentences).tolist()
        assert row == expected + [0] * (len(row) - len(expected))
    assert batch.sentence_parts.shape[1] == batch.token_mask.max()
    assert PairDataset(store, "train", input=INPUT).batch([(0, 0)], encode=encode).sentence_parts is None


def test_sentences_that_the_tokenizer_cut_off_have_no_part(store):
    def short(reports):
        tokens, mask = encode(reports)
        return tokens[:, :1], mask[:, :1]

    def silent(reports):
        return np.ones((len(reports), 2), np.int64), np.full((len(reports), 2), -1)

    pairs = two(store, parts=parts)
    first = [parts(pair.sentences)[0] for pair in pairs.pairs([(0, 0), (0, 5)])]
    assert pairs.batch([(0, 0), (0, 5)], encode=short).sentence_parts[:, 0].tolist() == first
    # A text encoder gives a batch without words one column.
    assert pairs.batch([(0, 0)], encode=silent).sentence_parts.shape == (2, 1)


@pytest.mark.parametrize("view", ["retrieval", "generation"])
def test_the_bank_is_asked_once_for_whole_reports_and_follows_the_rows(store, view):
    asked = []

    def once(texts):
        asked.append(list(texts))
        return bank(texts)

    pairs = two(store, view=view, bank=once)
    assert asked == [[getattr(record, view) for record in pairs.records]]
    batch = pairs.batch([(0, 4), (0, 2)], encode=encode)
    for rows, item in ((slice(0, 2), 4), (slice(2, 4), 2)):
        text = getattr(pairs.records[pairs.looks([(0, item)])[0].text], view)
        assert torch.equal(batch.bank[rows], torch.from_numpy(bank([text, text])))


def test_another_number_of_views_is_refused(store):
    with pytest.raises(UsageError, match=r"a batch cannot have 3 views of a study\. Allowed: 1, 2"):
        PairDataset(store, "train", input=INPUT, views=3)
