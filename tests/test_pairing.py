"""Pairing: which image gets which report, and that nothing is dropped without a reason."""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medvl.errors import BadTable, UsageError
from medvl.preprocess.sources.discovery import discover
from medvl.preprocess.sources.pairing import pair
from medvl.records import Box


def png(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full((4, 4), value, np.uint8)).save(path, format="PNG")
    return path


def dicom(path: Path, *, value: int = 0, pixels: bool = True, **elements: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = Dataset()
    dataset.SOPClassUID = elements.pop("SOPClassUID", "1.2.840.10008.5.1.4.1.1.1.1")
    dataset.SOPInstanceUID = elements.pop("SOPInstanceUID", f"1.2.{abs(hash(str(path)))}")
    dataset.Modality = "DX"
    for keyword, element in elements.items():
        setattr(dataset, keyword, element)
    if pixels:
        dataset.Rows = dataset.Columns = 2
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.SamplesPerPixel, dataset.PixelRepresentation = 15, 1, 0
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.PixelData = np.full((2, 2), value, np.uint16).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, "utf-8")
    return path


def reports(pairing) -> dict[str, str]:
    return {item.path.name: item.report for item in pairing.items}


def reasons(pairing) -> dict[str, int]:
    return dict(Counter(entry.reason for entry in pairing.unpaired))


# --- files --------------------------------------------------------------------------------------------------


def test_files_are_found_in_order_and_known_by_content(tmp_path):
    source = tmp_path / "source"
    png(source / "b" / "scan")  # no suffix
    png(source / "a.dcm")  # a PNG that lies about itself
    dicom(source / "c" / "IM0001")
    dicom(source / "DICOMDIR")
    text(source / "notes.txt", "hello")
    text(source / "broken.png", "no picture")
    (source / "empty.dcm").touch()
    text(source / "reports.csv", "a,b\n")
    png(source / ".hidden" / "x.png")
    png(source / "__MACOSX" / "x.png")
    png(source / "old" / "x.png")
    text(source / "old" / "store.json", "{}")
    text(source / "old" / "index.parquet", "")
    assert [(file.relative, file.kind) for file in discover(source)] == [
        ("DICOMDIR", "dicomdir"),
        ("a.dcm", "raster"),
        ("b/scan", "raster"),
        ("broken.png", "damaged"),
        ("c/IM0001", "dicom"),
        ("empty.dcm", "damaged"),
        ("notes.txt", "text"),
        ("reports.csv", "table"),
    ]
    with pytest.raises(UsageError, match="source is not a folder"):
        discover(source / "reports.csv")


def test_links_do_not_lead_out_of_the_source(tmp_path):
    secret = png(tmp_path / "outside" / "secret.png")
    source = tmp_path / "source"
    png(source / "a.png")
    (source / "link.png").symlink_to(secret)
    (source / "folder").symlink_to(secret.parent)
    (source / "loop").symlink_to(source)
    (source / "again.png").symlink_to(source / "a.png")
    assert [(file.relative, file.kind) for file in discover(source)] == [
        ("a.png", "raster"),
        ("folder", "outside"),
        ("link.png", "outside"),
    ]
    text(source / "reports.csv", "image,report\nlink.png,Secret report here.\na.png,Clear lungs seen.\n")
    pairing = pair(source)
    assert reports(pairing) == {"a.png": "Clear lungs seen."}
    assert reasons(pairing) == {"outside_file": 2, "report_without_image": 1}


# --- matching -----------------------------------------------------------------------------------------------


def test_keys_are_tried_in_order_and_the_method_is_shown(tmp_path):
    dicom(tmp_path / "a.dcm", AccessionNumber="007", StudyInstanceUID="1.1", PatientID="P1")
    dicom(tmp_path / "b.dcm", AccessionNumber="", StudyInstanceUID="1.2", PatientID="P2")
    dicom(tmp_path / "c.dcm", SOPInstanceUID="1.9.3", StudyInstanceUID="1.3", PatientID="P3")
    dicom(tmp_path / "d.dcm", StudyInstanceUID="1.4", PatientID="P4")
    dicom(tmp_path / "e.dcm", StudyInstanceUID="1.5", PatientID="P5")
    text(
        tmp_path / "reports.csv",
        "accession,study_instance_uid,sop_instance_uid,file,report\n"
        "007,1.2,,,By accession number.\n"
        ",1.2,,,By study identifier.\n"
        ",,1.9.3,,By instance identifier.\n"
        ",,,x/y/d.dcm,Not by this name.\n"
        ",,,d.dcm,By the file name.\n"
        "999,,,,Of nobody at all.\n",
    )
    pairing = pair(tmp_path)
    found = {item.path.name: (item.method, item.report, item.patient, item.study) for item in pairing.items}
    assert found["a.dcm"] == ("accession", "By accession number.", "P1", "1.1")
    assert found["c.dcm"] == ("sop_uid", "By instance identifier.", "P3", "1.3")
    assert found["d.dcm"] == ("file", "By the file name.", "P4", "1.4")
    assert found["e.dcm"] == ("none", "", "P5", "1.5")
    assert "b.dcm" not in found  # two rows of one StudyInstanceUID say different things
    assert reasons(pairing) == {
        "conflicting_reports": 1,
        "image_without_report": 1,
        "report_without_image": 2,
    }
    assert pairing.summary()["methods"] == {"accession": 1, "file": 1, "none": 1, "sop_uid": 1}
    assert pairing.items[0].modality == "DX"


def test_equal_reports_of_one_study_are_no_conflict_and_an_image_row_settles_one(tmp_path):
    for name in "ab":
        dicom(tmp_path / f"{name}.dcm", AccessionNumber="1", StudyInstanceUID="1.1", PatientID="P")
    text(tmp_path / "reports.csv", "accession,report\n1,Clear lungs.\n1,  clear   LUNGS.\n")
    assert reports(pair(tmp_path)) == {"a.dcm": "Clear lungs.", "b.dcm": "Clear lungs."}
    text(tmp_path / "reports.csv", "accession,image,report\n1,a.dcm,Left view.\n1,b.dcm,Right view.\n")
    assert reports(pair(tmp_path)) == {"a.dcm": "Left view.", "b.dcm": "Right view."}


def test_file_names_match_by_their_longest_common_end(tmp_path):
    png(tmp_path / "train" / "p1" / "view1.png")
    png(tmp_path / "train" / "p2" / "view1.png")
    png(tmp_path / "IM-7.dcm.png")
    text(
        tmp_path / "images.csv",
        "Path,text\n"
        "Set-v1/train/p1/view1.png,First of all.\n"
        "C:\\data\\Set-v1\\train\\p2\\view1.png,Second of all.\n"
        "IM-7,Third of all.\n",
    )
    found = {item.path.relative_to(tmp_path).as_posix(): item.report for item in pair(tmp_path).items}
    assert found == {
        "train/p1/view1.png": "First of all.",
        "train/p2/view1.png": "Second of all.",
        "IM-7.dcm.png": "Third of all.",
    }


def test_a_name_that_fits_two_images_is_refused_unless_one_fits_better(tmp_path):
    png(tmp_path / "a" / "1.png")
    png(tmp_path / "b" / "1.png")
    png(tmp_path / "2.png")
    png(tmp_path / "2.jpg")
    text(tmp_path / "images.csv", "image,text\n1.png,Whose is it.\n2.png,The first one.\n")
    pairing = pair(tmp_path)
    assert reports(pairing) == {"2.png": "The first one.", "2.jpg": ""}
    assert reasons(pairing) == {"ambiguous_file_name": 2, "image_without_report": 1}


def test_a_row_may_name_several_images_and_a_folder_may_be_the_study(tmp_path):
    png(tmp_path / "f.png")
    png(tmp_path / "l.png")
    png(tmp_path / "p10" / "p10000032" / "s50414267" / "02aa.png")
    text(
        tmp_path / "reports.csv",
        "study_id,frontal_files,report\n1,f.png;l.png;gone.png,Two views here.\n50414267,,From the folder.\n",
    )
    pairing = pair(tmp_path)
    assert reports(pairing) == {
        "f.png": "Two views here.",
        "l.png": "Two views here.",
        "02aa.png": "From the folder.",
    }
    by_name = {item.path.name: item for item in pairing.items}
    assert by_name["f.png"].study == by_name["l.png"].study == "1"
    assert (by_name["02aa.png"].method, by_name["02aa.png"].patient) == ("folder", "p10000032")
    assert reasons(pairing) == {"named_image_missing": 1}


@pytest.mark.parametrize("name", ["../a.png", "sub/../../a.png", "/etc/a.png", "..\\a.png"])
def test_a_path_out_of_the_source_is_refused(tmp_path, name):
    source = tmp_path / "source"
    png(source / "b.png")
    png(tmp_path / "a.png")
    text(source / "images.csv", f"image,text\n{name},From outside here.\nb.png,From inside here.\n")
    pairing = pair(source)
    assert reports(pairing) == {"b.png": "From inside here."}
    assert [(entry.reason, entry.line) for entry in pairing.unpaired] == [("path_outside_source", 2)]


# --- what must not slip through -----------------------------------------------------------------------------


def test_damaged_files_stay_items_so_that_the_reader_names_their_fault(tmp_path):
    (tmp_path / "empty.png").touch()
    text(tmp_path / "broken.dcm", "no DICOM")
    text(tmp_path / "images.csv", "image,text\nempty.png,A report here.\nbroken.dcm,Another report.\n")
    assert reports(pair(tmp_path)) == {"broken.dcm": "Another report.", "empty.png": "A report here."}


def test_one_instance_uid_with_two_contents_is_refused_and_a_copy_is_listed(tmp_path):
    dicom(tmp_path / "a.dcm", SOPInstanceUID="1.5", AccessionNumber="1", value=1)
    dicom(tmp_path / "b.dcm", SOPInstanceUID="1.5", AccessionNumber="1", value=2)
    dicom(tmp_path / "c.dcm", SOPInstanceUID="1.6", AccessionNumber="1", value=3)
    dicom(tmp_path / "d.dcm", SOPInstanceUID="1.6", AccessionNumber="1", value=3, PatientName="Copy")
    text(tmp_path / "reports.csv", "accession,report\n1,Clear lungs.\n")
    pairing = pair(tmp_path)
    assert reports(pairing) == {"c.dcm": "Clear lungs."}
    assert reasons(pairing) == {"same_uid_different_pixels": 2, "duplicate_file": 1}


def test_one_study_uid_of_two_patients_is_refused(tmp_path):
    for name, patient in (("a", "P1"), ("b", "P2"), ("c", "")):
        dicom(tmp_path / f"{name}.dcm", StudyInstanceUID="1.1", AccessionNumber="1", PatientID=patient)
    text(tmp_path / "reports.csv", "accession,report\n1,Clear lungs.\n")
    pairing = pair(tmp_path)
    assert not pairing.items
    assert reasons(pairing) == {"one_study_of_two_patients": 3, "report_without_image": 1}


def test_objects_without_pixels_are_listed(tmp_path):
    dicom(tmp_path / "sr.dcm", pixels=False, Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22")
    text(tmp_path / "reports.csv", "accession,report\n1,Clear lungs.\n")
    dicom(tmp_path / "ps.dcm", pixels=False, Modality="PR", SOPClassUID="1.2.840.10008.5.1.4.1.1.11.1")
    assert reasons(pair(tmp_path)) == {
        "no_image_object": 1,
        "sr_without_text": 1,
        "report_without_image": 1,
    }


def test_a_patient_has_one_key_wherever_it_is_stated(tmp_path):
    dicom(tmp_path / "a.dcm", AccessionNumber="1", PatientID="MRN1")
    dicom(tmp_path / "b.dcm", AccessionNumber="2", PatientID="MRN1")  # no row: the table's key is taken over
    dicom(tmp_path / "c.dcm", AccessionNumber="3", PatientID="MRN3")
    text(tmp_path / "reports.csv", "accession,group_id,report\n1,G7,Clear lungs.\n")
    assert {item.path.name: item.patient for item in pair(tmp_path).items} == {
        "a.dcm": "G7",
        "b.dcm": "G7",
        "c.dcm": "MRN3",
    }


def test_an_id_that_many_patients_share_is_nobody(tmp_path):
    for number in (1, 2, 3):
        dicom(
            tmp_path / f"{number}.dcm",
            AccessionNumber=str(number),
            StudyInstanceUID=f"1.{number}",
            PatientID="ANON",
        )
    text(tmp_path / "reports.csv", "accession,patient_id,report\n1,A,Clear lungs.\n2,B,Clear heart.\n")
    pairing = pair(tmp_path)
    assert [item.patient for item in pairing.items] == ["A", "B", "1.3"]
    assert pairing.notes == ("no patient is known for 1 images: each study counts as a patient of its own",)


def test_a_single_patient_key_for_all_is_pointed_out(tmp_path):
    for number in (1, 2, 3):
        dicom(tmp_path / f"{number}.dcm", AccessionNumber=str(number), PatientID="ANON")
    text(tmp_path / "reports.csv", "accession,report\n1,Clear lungs.\n")
    assert pair(tmp_path).notes == (
        "all images have one patient key: check the patient column or the headers",
    )


def test_splits_come_from_the_table_by_patient(tmp_path):
    for name in "abc":
        png(tmp_path / f"{name}.png")
    text(
        tmp_path / "images.csv",
        "image,patient,split,text\na.png,P,valid,One two.\nb.png,P,,Three.\nc.png,Q,TEST,Four.\n",
    )
    assert pair(tmp_path, columns={"split": "split"}).items[1].split == "val"
    assert [item.split for item in pair(tmp_path).items] == ["val", "val", "test"]
    text(
        tmp_path / "images.csv",
        "image,patient,split,text\na.png,P,train,One two.\nb.png,P,test,Three four.\n",
    )
    with pytest.raises(BadTable, match="split column puts 1 patients into more than one split"):
        pair(tmp_path)
    assert {item.split for item in pair(tmp_path, columns={"split": ""}).items} == {None}


# --- tables -------------------------------------------------------------------------------------------------


def test_labels_and_boxes_are_found_by_name_and_by_key(tmp_path):
    dicom(tmp_path / "dicom" / "a.dcm", SOPInstanceUID="1.9", AccessionNumber="1", StudyInstanceUID="1.1")
    text(tmp_path / "reports.csv", "accession,report\n1,Clear lungs.\n")
    text(tmp_path / "labels.csv", "accession,nodule,edema\n1,1,0\n2,0,0\n")
    text(
        tmp_path / "lung_boxes.csv",
        "sop_instance_uid,label,x0,y0,x1,y1\n1.9,nodule,1,2,3,4\n1.8,nodule,1,2,3,4\n",
    )
    text(tmp_path / "truth.csv", "anything,at all\n1,2\n")
    pairing = pair(tmp_path)
    (item,) = pairing.items
    assert item.labels == {"nodule": "present", "edema": "absent"}
    assert item.boxes == (Box("nodule", 1.0, 2.0, 3.0, 4.0),)
    assert reasons(pairing) == {"labels_without_image": 1, "boxes_without_image": 1}


def test_which_table_is_meant_must_be_clear(tmp_path):
    text(tmp_path / "page.html", "<p>No image, no table.</p>")
    with pytest.raises(BadTable, match="neither an image nor a report was found among 1 files"):
        pair(tmp_path)
    png(tmp_path / "a.png")
    alone = pair(tmp_path)
    assert len(alone.items) == 1 and any("no report was found" in note for note in alone.notes)
    text(tmp_path / "one.csv", "image,text\na.png,From one table.\n")
    text(tmp_path / "two.csv", "image,report\na.png,From another table.\n")
    with pytest.raises(
        BadTable, match="source holds 2 tables that could hold the reports; 2 have one of texts"
    ):
        pair(tmp_path)
    assert reports(pair(tmp_path, table=tmp_path / "two.csv")) == {"a.png": "From another table."}
    text(tmp_path / "reports.csv", "who,text\na,From a table without keys.\n")
    with pytest.raises(BadTable, match=r"table file-\w+ has no column .* study\. .*--column image=NAME"):
        pair(tmp_path)


def test_the_summary_names_nobody(tmp_path):
    dicom(tmp_path / "DOE_JOHN.dcm", AccessionNumber="ACC77", PatientID="MRN88", StudyInstanceUID="1.2.99")
    text(tmp_path / "reports.csv", "accession,report\nACC77,John has an effusion.\nACC78,Nothing for Jane.\n")
    pairing = pair(tmp_path)
    shown = json.dumps(pairing.summary()) + "\n".join(pairing.lines()) + repr(pairing.unpaired)
    for name in ("DOE", "ACC77", "MRN88", "1.2.99", "ACC78", "John", "Jane"):
        assert name not in shown
    assert "column accession: accession (by name)" in pairing.lines()


def test_a_process_pool_may_read_the_headers(tmp_path):
    for number in range(4):
        dicom(tmp_path / f"{number}.dcm", AccessionNumber=str(number))
    text(tmp_path / "reports.csv", "accession,report\n2,Clear lungs.\n")
    with ProcessPoolExecutor(1) as pool:
        assert pair(tmp_path, map_headers=pool.map) == pair(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_listed(tmp_path):
    png(tmp_path / "a.png")
    (tmp_path / "closed").mkdir(mode=0)
    text(tmp_path / "images.csv", "image,text\na.png,Clear lungs.\n")
    assert reasons(pair(tmp_path)) == {"unreadable_file": 1}


# --- real data ----------------------------------------------------------------------------------------------


@pytest.mark.data
def test_clinical_notes_are_paired_whole(shared_data):
    pairing = pair(shared_data / "cxr" / "clinical_notes")
    summary = pairing.summary()
    # the data's README: 274 images, 199 with a note, 542 boxes, notes split on group_id
    assert (summary["images"], summary["with_report"]) == (274, 199)
    assert sum(len(item.boxes) for item in pairing.items) == 542
    assert summary["unpaired"] == {"image_without_report": 75}
    assert summary["columns"]["patient"] == "group_id"


@pytest.mark.data
def test_children_are_paired_by_labels(shared_data):
    summary = pair(shared_data / "cxr" / "pneumonia_children").summary()
    # the data's README: 4,308 images of 2,080 patient groups, labels only
    assert (summary["images"], summary["with_labels"], summary["patients"]) == (4308, 4308, 2080)
