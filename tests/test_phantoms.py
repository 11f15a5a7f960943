"""Phantom sets: fixed bytes, tables that agree with the truth, reports made from it, no shortcuts."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pydicom
import pytest

from medvl.errors import BadTable, UsageError
from medvl.phantoms import FINDINGS, LEVELS, Finding, shortcut_probes, write_phantoms
from medvl.phantoms.truth import draw_findings
from medvl.phantoms.vocabulary import SIDE_WORDS
from medvl.phantoms.wording import write_report

PINNED = {
    "easy": "19992648605b0f0579b076fc951982e6f5a63f29c96fbd8e6a96b04e92085274",
    "middle": "45edc2d7b71bda42c176d14c5af99aa89f88c5bab7b9940b92fe0f0e6fb6d7e5",
    "hard": "4d93cacc1c4d793c192c8bb81873d9dd14a46e00872af483540f429b1d745498",
}


def table(folder, name):
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set of 260 studies at the middle level, small pictures."""
    folder = tmp_path_factory.mktemp("phantoms") / "set"
    return folder, write_phantoms(folder, n=260, seed=3, size_px=64, workers=2)


@pytest.mark.parametrize("level", sorted(PINNED))
def test_the_hash_of_a_set_is_frozen(level, tmp_path):
    summary = write_phantoms(tmp_path / "set", n=6, seed=11, level=level, size_px=96, workers=1)
    assert summary.hash == PINNED[level]


def test_the_hash_is_that_of_decoded_pixels_boxes_and_reports(tmp_path):
    folder = tmp_path / "set"
    summary = write_phantoms(folder, n=5, seed=2, size_px=64, workers=1)
    pixels = defaultdict(bytes)
    for path in sorted((folder / "dicom").rglob("*.dcm")):
        ds = pydicom.dcmread(path)
        pixels[ds.AccessionNumber] += repr(ds.pixel_array.shape).encode() + ds.pixel_array.tobytes()
    accession = {row["sop_instance_uid"]: row["accession"] for row in table(folder, "truth.csv")}
    boxes = defaultdict(bytes)
    for row in table(folder, "boxes.csv"):
        place = {key: int(value) if key in ("x0", "x1", "y0", "y1") else value for key, value in row.items()}
        boxes[accession[row["sop_instance_uid"]]] += repr(sorted(place.items())).encode()
    whole = hashlib.sha256()
    for row in table(folder, "reports.csv"):
        key = row["accession"]
        whole.update(hashlib.sha256(row["report"].encode() + pixels[key] + boxes[key]).digest())
    assert summary.hash == whole.hexdigest()


def test_the_number_of_workers_changes_no_byte(tmp_path):
    seen = []
    one = write_phantoms(tmp_path / "one", n=24, seed=4, size_px=64, workers=1)
    two = write_phantoms(
        tmp_path / "two", n=24, seed=4, size_px=64, workers=2, progress=lambda *step: seen.append(step[:2])
    )
    assert one == two
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert seen[-1] == (24, 24) and seen == sorted(seen)


def test_another_seed_or_level_is_another_set(tmp_path):
    hashes = {
        write_phantoms(tmp_path / f"{seed}{level}", n=2, seed=seed, level=level, size_px=64, workers=1).hash
        for seed, level in ((0, "easy"), (1, "easy"), (0, "middle"))
    }
    assert len(hashes) == 3


def test_tables_agree_with_each_other_and_with_the_files(made):
    folder, summary = made
    truth, labels = table(folder, "truth.csv"), table(folder, "labels.csv")
    reports, boxes = table(folder, "reports.csv"), table(folder, "boxes.csv")
    assert len(labels) == len(reports) == summary.studies == 260
    assert len({row["accession"] for row in labels}) == 260
    stated = {(row["accession"], kind) for row in labels for kind in FINDINGS if row[kind] == "1"}
    assert stated == {(row["accession"], row["label"]) for row in truth if row["label"]}
    images = {row["sop_instance_uid"]: row for row in truth}
    assert len(images) == summary.images == len(list((folder / "dicom").rglob("*.dcm")))
    for row in boxes:
        image = images[row["sop_instance_uid"]]
        assert 0 <= int(row["x0"]) < int(row["x1"]) <= int(image["columns"])
        assert 0 <= int(row["y0"]) < int(row["y1"]) <= int(image["rows"])
    for uid, row in list(images.items())[:60]:
        ds = pydicom.dcmread(folder / row["file"])
        assert (ds.SOPInstanceUID, ds.AccessionNumber, ds.PatientID) == (
            uid,
            row["accession"],
            row["patient_id"],
        )
        assert (str(ds.Rows), ds.ViewPosition, ds.PhotometricInterpretation) == (
            row["rows"],
            row["view"],
            row["photometric"],
        )
        assert ds.PatientName and ds.PatientBirthDate


def test_half_the_studies_are_normal_and_patients_have_one_or_two(made):
    folder, summary = made
    # binomial(260, .5): 4 standard errors are 0.124, and studies of one patient are correlated
    assert summary.normal == pytest.approx(0.5, abs=0.13)
    studies = Counter(row["patient_id"] for row in table(folder, "reports.csv"))
    assert set(studies.values()) == {1, 2} and len(studies) == summary.patients
    views = defaultdict(set)
    for row in table(folder, "truth.csv"):
        views[row["accession"]].add(row["view"])
    assert all(view & {"PA", "AP"} for view in views.values())
    assert {frozenset(view) for view in views.values()} == {
        frozenset(names) for names in (("PA",), ("AP",), ("PA", "LL"), ("AP", "LL"))
    }


def test_the_set_shows_the_variety_of_real_exports(made):
    folder, _ = made
    images = list({row["sop_instance_uid"]: row for row in table(folder, "truth.csv")}.values())
    seen = {name: {row[name] for row in images} for name in images[0]}
    assert seen["sop_class"] == {"DX", "CR"}
    assert seen["photometric"] == {"MONOCHROME1", "MONOCHROME2"}
    assert seen["bits_stored"] == {"12", "16"}
    assert seen["voi"] == {"window", "windows", "exact", "sigmoid", "lut", "none"}
    assert seen["syntax"] == {"explicit", "implicit", "rle", "jpegls", "jpeg2000"}
    assert seen["spacing"] == {"pixel", "imager", "both", "none"}
    assert "" in seen["slope"] and len(seen["slope"]) > 2
    assert len({(row["rows"], row["columns"]) for row in images}) == 3
    assert len(seen["spacing_mm"]) > 5


def test_grounding_chance_is_about_015(made):
    folder, summary = made
    assert summary.pointing_chance == pytest.approx(0.15, abs=0.025)
    # oracle: count cells one by one
    shares = []
    for row in table(folder, "truth.csv"):
        if row["boxes"]:
            high, wide = int(row["rows"]) / 8, int(row["columns"]) / 8
            corners = [tuple(map(int, box.split())) for box in row["boxes"].split(";")]
            met = sum(
                any(
                    x0 < (column + 1) * wide
                    and x1 > column * wide
                    and y0 < (line + 1) * high
                    and y1 > line * high
                    for x0, y0, x1, y1 in corners
                )
                for line in range(8)
                for column in range(8)
            )
            shares.append(met / 64)
    assert summary.pointing_chance == pytest.approx(np.mean(shares), abs=1e-4)


def test_no_shortcut_tells_the_truth(made):
    _, summary = made
    assert {probe.shortcut for probe in summary.probes} == {"report_length", "mean_intensity", "acquisition"}
    for probe in summary.probes:
        # chance is ½ ± noise: 0.10, or 2.5 standard errors under the null where positives are few
        bound = 0.5 + max(0.10, 2.5 * probe.standard_error)
        assert probe.auroc <= bound, probe
        if probe.target == "any":
            assert probe.auroc <= 0.60, probe


def test_probes_find_a_planted_shortcut(made, tmp_path):
    folder, _ = made
    rows, labels = table(folder, "reports.csv"), table(folder, "labels.csv")
    for row, label in zip(rows, labels, strict=True):
        row["report"] = "word " * (40 if label["nodule"] == "1" else 20)
    for name in ("labels.csv", "truth.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with (tmp_path / "reports.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = {(probe.shortcut, probe.target): probe.auroc for probe in shortcut_probes(tmp_path)}
    assert found["report_length", "nodule"] == 1.0


def test_duplicates_are_about_three_in_ten(made):
    folder, summary = made
    texts = [" ".join(row["report"].split()).casefold() for row in table(folder, "reports.csv")]
    assert summary.duplicates == pytest.approx(1 - len(set(texts)) / len(texts), abs=1e-4)
    # expected: ½ normal × 0.7 repeated − at most 32 different texts / 260
    assert 0.20 <= summary.duplicates <= 0.38


def test_every_finding_is_stated_with_its_side(made):
    folder, _ = made
    sides = {(row["accession"], row["label"]): row["side"] for row in table(folder, "truth.csv")}
    stated = defaultdict(list)
    for row in table(folder, "sentences.csv"):
        if row["kind"] == "finding":
            stated[row["accession"], row["labels"]].append(row["text"].lower())
    assert set(stated) == {key for key in sides if key[1]}
    for key, texts in stated.items():
        own = SIDE_WORDS[sides[key]]
        others = {"left", "right"} - {sides[key]}
        for text in texts:
            words = set(re.findall(r"[a-z/]+", text))
            assert "" in own or words & set(own), (key, text)
            assert not words & others, (key, text)


def test_no_absent_finding_is_stated_and_no_present_one_denied(made):
    folder, _ = made
    labels = {row["accession"]: row for row in table(folder, "labels.csv")}
    reports = {row["accession"]: row["report"] for row in table(folder, "reports.csv")}
    kinds = Counter()
    for row in table(folder, "sentences.csv"):
        for kind in filter(None, row["labels"].split(";")):
            assert labels[row["accession"]][kind] == str(int(row["kind"] == "finding"))
        assert row["text"] in reports[row["accession"]]
        assert row["observable"] == str(int(row["kind"] != "unobservable"))
        kinds[row["kind"]] += 1
    assert set(kinds) == {"finding", "negation", "normal", "unobservable"}


def test_half_of_the_absent_findings_are_denied_in_findings_sections():
    denied = present = 0
    for seed in range(300):
        writing = write_report(np.random.default_rng(seed), (), unobservable=0.0, style="plain")
        denied += sum(len(item.labels) for item in writing.statements if item.kind == "negation")
        present += len(FINDINGS)
    # 1,800 coins: 4 standard errors are 0.047
    assert denied / present == pytest.approx(0.5, abs=0.047)


def share_of_reports_with_unobservable_sentences(folder):
    rows = table(folder, "sentences.csv")
    body = [row for row in rows if row["section"] not in ("indication", "comparison")]
    carrying = {row["accession"] for row in body if row["kind"] == "unobservable"}
    return len(carrying) / len({row["accession"] for row in rows})


def test_the_dial_of_unobservable_sentences(made, tmp_path):
    folder, _ = made
    # binomial(260, 0.3): 4 standard errors are 0.114
    assert share_of_reports_with_unobservable_sentences(folder) == pytest.approx(0.3, abs=0.114)
    for share in (0.0, 1.0):
        write_phantoms(tmp_path / str(share), n=24, seed=8, size_px=48, unobservable=share, workers=1)
        assert share_of_reports_with_unobservable_sentences(tmp_path / str(share)) == share
    none = table(tmp_path / "0.0", "sentences.csv")
    assert {row["section"] for row in none} == {"findings", "impression", "body"}
    assert all(row["observable"] == "1" for row in none)


def test_styles_of_headings():
    rng = np.random.default_rng
    finding = Finding("nodule", "left", "upper", "small", "mild")
    upper = write_report(rng(0), (finding,), unobservable=0.3, style="upper")
    assert re.match(r"INDICATION: .+\nCOMPARISON: .+\nFINDINGS: .+\nIMPRESSION: ", upper.text)
    title = write_report(rng(1), (finding,), unobservable=0.3, style="title")
    assert re.match(r"Indication:\n.+\n\nComparison:\n.+\n\nFindings:\n.+\n\nImpression:\n", title.text)
    inline = write_report(rng(2), (finding,), unobservable=0.3, style="inline")
    assert re.match(r"Indication: .+ Comparison: .+ Findings: .+ Impression: ", inline.text)
    assert "\n" not in inline.text
    short = write_report(rng(3), (finding,), unobservable=0.0, style="impression_only")
    assert short.text.startswith("IMPRESSION: ") and short.section("findings") == ""
    assert ":" not in write_report(rng(4), (finding,), unobservable=0.0, style="plain").text


def test_every_template_can_be_filled():
    for seed in range(400):
        rng = np.random.default_rng(seed)
        writing = write_report(rng, draw_findings(rng, level=LEVELS["middle"]), unobservable=1.0)
        assert not re.search(r"[{}]|  |\bnone (zone|lung|pleural|pneumo)", writing.text)
        assert all(item.text[0].isupper() and item.text.endswith(".") for item in writing.statements)


def test_a_complete_folder_is_kept_and_an_interrupted_one_is_written_again(tmp_path):
    folder = tmp_path / "set"
    first = write_phantoms(folder, n=4, seed=1, size_px=48, workers=1)
    before = files(folder)
    stamp = (folder / "reports.csv").stat().st_mtime_ns
    assert write_phantoms(folder, n=4, seed=1, size_px=48, workers=1) == first
    assert (folder / "reports.csv").stat().st_mtime_ns == stamp
    card = json.loads((folder / "phantom.json").read_text())
    assert next(iter(card)) == "notice" and "no clinical meaning" in card["notice"]
    (folder / "phantom.json").write_text(json.dumps({**card, "complete": False}))
    (folder / "labels.csv").unlink()
    assert write_phantoms(folder, n=4, seed=1, size_px=48, workers=1) == first
    assert files(folder) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"size_px": 20}, "size_px is 20"),
        ({"unobservable": 1.5}, "unobservable is 1.5"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_values_out_of_range_are_refused(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        write_phantoms(tmp_path / "set", **{"n": 2, "seed": 0, **changes})
    assert not (tmp_path / "set").exists()


def test_an_unknown_level_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"'midle'.*Did you mean 'middle'"):
        write_phantoms(tmp_path / "set", n=2, seed=0, level="midle")


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        write_phantoms(tmp_path, n=2, seed=0)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    write_phantoms(tmp_path / "set", n=2, seed=0, size_px=48)
    with pytest.raises(UsageError, match=r"another phantom set \(seed 0, level middle, 2 studies\)"):
        write_phantoms(tmp_path / "set", n=2, seed=1, size_px=48)
    with pytest.raises(BadTable, match=r"reports\.csv, labels\.csv, truth\.csv"):
        shortcut_probes(tmp_path)


def test_a_set_may_be_asked_for_some_findings_only(tmp_path):
    few = ("nodule", "cardiomegaly")
    folder = tmp_path / "few"
    summary = write_phantoms(folder, n=24, seed=3, size_px=48, workers=1, findings=few)
    assert summary.findings == ["nodule", "cardiomegaly"] == list(summary.prevalence)
    assert {row["label"] for row in table(folder, "truth.csv")} - {""} == set(few)
    assert set(table(folder, "labels.csv")[0]) - set(few) == {"accession"}
    whole = write_phantoms(tmp_path / "all", n=2, seed=3, size_px=48, workers=1)
    assert (
        write_phantoms(tmp_path / "named", n=2, seed=3, size_px=48, workers=1, findings=FINDINGS).hash
        == whole.hash
    )
    with pytest.raises(UsageError, match="another phantom set"):
        write_phantoms(folder, n=24, seed=3, size_px=48, workers=1)
    with pytest.raises(UsageError, match=r"no phantom has the finding 'nodul'\..* Did you mean 'nodule'\?"):
        write_phantoms(tmp_path / "x", n=2, seed=3, size_px=48, findings=["nodul"])
    with pytest.raises(UsageError, match=r"no finding is allowed\. Allowed: nodule"):
        write_phantoms(tmp_path / "x", n=2, seed=3, size_px=48, findings=[])
