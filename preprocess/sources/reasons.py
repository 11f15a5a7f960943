"""How a report was found, why a file or a row has no partner, and what to do next: words for people."""

from __future__ import annotations

__all__ = ["HINTS", "METHODS"]

METHODS: dict[str, str] = {
    "accession": "accession number",
    "study_uid": "StudyInstanceUID",
    "sop_uid": "SOPInstanceUID",
    "file": "file name",
    "name": "the study that the file is named after",
    "loose": "an accession number of another form",
    "patient_date": "patient and study date",
    "layout": "the tables and folders of the public data set",
}
"""Kind of key to words for people, where the kind does not say it."""

HINTS: dict[str, str] = {
    # images
    "image_without_report": "kept with an empty text; check the keys of the table if these should have one.",
    "conflicting_reports": "two different reports claim the image; keep the right row, or name the images.",
    "ambiguous_file_name": "a name fits several images equally well; write their paths into the table.",
    "ambiguous_patient_date": "two studies of one patient lie equally near; add an accession number.",
    "same_uid_different_pixels": "one SOPInstanceUID for two pictures; find out which one is right.",
    "one_study_of_two_patients": "one StudyInstanceUID for two patients; correct the export.",
    "duplicate_file": "a copy of a file that is kept.",
    "not_a_radiograph": "this modality does not read such files; use the command of theirs.",
    "picture_of_a_medium": "a picture beside a DICOMDIR, as viewers have; name it in a table if it is meant.",
    "other_modality": "its header names another modality; prepare it by the command of that.",
    "mask_without_volume": "no volume has its name, series or study; name it after one of them.",
    "second_mask": "another mask of its volume is used.",
    "no_image_object": "a DICOM object without a picture (presentation state, dose report, …).",
    # files
    "outside_file": "a link that leads out of the source; copy the file in if it is meant.",
    "unreadable_file": "no permission to read it; run as a user who has it.",
    "archive_file": "unpack it, or give the archive itself as the source.",
    "foreign_report": "it may hold reports, in a format that is not read; save it as CSV, .xlsx or .txt.",
    "other_file": "neither an image nor a report.",
    "dicomdir_reference_missing": "the DICOMDIR lists a file that is not there; copy the medium again.",
    "dicomdir_reference_outside": "the DICOMDIR points out of its folder; it was not followed.",
    "dicomdir_damaged": "the DICOMDIR cannot be read; files are found without it.",
    # reports
    "report_without_image": "no image that is kept has its accession number, study, file name or folder.",
    "text_without_image": "its name or folder belongs to no image.",
    "row_without_image": "a row without text that no image has.",
    "named_image_missing": "a row names an image that is not there.",
    "path_outside_source": "a row names a path outside the source, not followed; write paths below it.",
    "report_too_long": "more than 200,000 characters; it may hold more than one report.",
    "text_unreadable": "no text, or in a character set that is not known; save it as UTF-8.",
    "superseded_report": "a later or final version of it is used.",
    "sr_without_text": "a structured report without text.",
    "sr_damaged": "the structured report cannot be read; export it again.",
    "hl7_not_a_report": "a message of another kind than ORU.",
    "hl7_without_text": "a message whose observations hold no text.",
    "hl7_header_damaged": "its MSH segment does not declare its delimiters.",
    # public layouts
    "image_without_row": "the data set's table does not list it.",
    "row_without_barcode": "its file name holds no case barcode.",
    "second_copy_of_image": "another copy of the image is kept.",
    "path_contradicts_table": "its folder and the data set's table name different studies.",
    "not_a_chest": "the data set says that it shows another part of the body.",
    "not_histology": "the data set says that it shows no tissue.",
    "excluded_by_the_data_set": "its authors marked it as not to be used.",
    # tables of labels and boxes
    "labels_without_image": "a key of the label table that no image has.",
    "boxes_without_image": "a key of the box table that no image has.",
}
"""Reason to one line for people."""
