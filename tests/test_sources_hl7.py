"""Reports in HL7 v2 messages: framing, escapes, sections, character sets, versions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.preprocess.sources.hl7 import Hl7Report, read_messages, standing
from medvl.preprocess.sources.hl7text import Delimiters, charset, decode, moment, unescape

PID = "PID|1||MRN77^^^HOSP^MR~8888^^^NAT||DOE^JOHN^Q^^MR||19400101|M|||1 Main St||555-0100"


def message(*segments: str, sent="20240102093000", kind="ORU^R01", charset="", pid=PID) -> str:
    head = f"MSH|^~\\&|RIS|HOSP|PACS|HOSP|{sent}||{kind}|7|P|2.5||||||{charset}"
    return "\r".join([head, *([pid] if pid else []), *segments]) + "\r"


def obr(accession="A100", *, status="F", day="20240101101500", placer="", procedure="") -> str:
    fields = {
        2: placer,
        3: accession,
        7: day,
        16: "12^SMITH^ANNA",
        19: procedure,
        25: status,
        32: "9&ROE&JANE",
    }
    return "OBR|" + "|".join(["1", *(fields.get(index, "") for index in range(2, 33))])


def obx(text: str, *, kind="TX", code="1^REPORT", status="F") -> str:
    return f"OBX|1|{kind}|{code}||{text}||||||{status}"


def read(data: str | bytes) -> list[Hl7Report]:
    data = data.encode() if isinstance(data, str) else data
    return [report for found in read_messages(data) for report in found.reports]


def texts(*messages: str) -> list[str]:
    return [report.text for report in standing(read("".join(messages)))]


# --- one message --------------------------------------------------------------------------------------------


def test_a_report_with_its_keys_and_all_persons():
    (report,) = read(message(obr(placer="P5"), obx("Clear lungs."), obx("No effusion.")))
    assert (report.accession, report.others, report.patient) == ("A100", ("P5",), "MRN77")
    assert (report.date, report.status, report.sent) == ("20240101", "final", "20240102093000")
    assert report.text == "Clear lungs.\nNo effusion."
    assert report.names == ("DOE^JOHN^Q", "SMITH^ANNA", "ROE^JANE")
    assert report.ids == ("MRN77", "8888", "P5", "A100")
    assert "DOE" not in repr(report) and "8888" not in repr(report)


@pytest.mark.parametrize("ending", ["\r", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("frame", [("", ""), ("\x0b", "\x1c\r")])
def test_framing_and_line_endings_do_not_matter(ending, frame):
    # MLLP: 0x0B message 0x1C 0x0D (HL7 v2.5 appendix C.4.3)
    one = frame[0] + message(obr("A1"), obx("First.")).replace("\r", ending) + frame[1]
    two = frame[0] + message(obr("A2"), obx("Second.")).replace("\r", ending) + frame[1]
    batch = f"FHS|^~\\&{ending}BHS|^~\\&{ending}{one}{two}BTS|2{ending}FTS|1{ending}"
    assert [(r.number, r.accession, r.text) for r in read(batch)] == [
        (1, "A1", "First."),
        (2, "A2", "Second."),
    ]


def test_escapes_repetitions_and_other_delimiters():
    (report,) = read(
        message(obr(), obx("3 \\T\\ 4 cm\\.br\\A\\F\\B~next\\X0D\\last \\H\\bold\\N\\", kind="FT"))
    )
    assert report.text == "3 & 4 cm\nA|B\nnext\nlast bold"
    data = (
        "MSH$%*!@$R$H$$$20240102$$ORU%R01$1$P$2.5\rPID$1$$P9*P10\rOBR$1$$A9%X\r"
        "OBX$1$TX$1%R$$One!S!two*three!F!$$$$$$F"
    )
    (report,) = read(data)
    assert (report.accession, report.patient, report.text) == ("A9", "P9", "One%two\nthree$")


def test_sections_become_headings_by_code_suffix_or_words():
    (report,) = read(
        message(
            obr(),
            obx("Cough.", code="18785-6^Reason for study^LN"),
            obx("Clear lungs.", code="71020&GDT^CHEST"),
            obx("Heart normal.", code="71020&GDT^CHEST"),
            obx("IMPRESSION: Normal.", code="71020&IMP^CHEST"),
            obx("Repeat in a year.", code="9^Recommendation"),
        )
    )
    assert report.text == (
        "INDICATION:\nCough.\nFINDINGS:\nClear lungs.\nHeart normal.\nIMPRESSION: Normal.\nRECOMMENDATION:\n"
        "Repeat in a year."
    )


def test_what_is_not_text_is_ignored_with_its_reason():
    (found,) = read_messages(
        message(
            obr(),
            obx("JVBERi0x", kind="ED"),
            obx("42", kind="NM"),
            obx("Wrong patient.", status="D"),
            obx("Right one."),
        ).encode()
    )
    assert [report.text for report in found.reports] == ["Right one."]
    assert dict(found.ignored) == {
        "hl7_embedded_document": 1,
        "hl7_observation_no_text": 1,
        "hl7_observation_deleted": 1,
    }


def test_the_study_uid_is_taken_from_its_observation():
    (report,) = read(
        message(obr(), obx("1.2.840.7", kind="HD", code="113014^DICOM Study^DCM"), obx("Clear."))
    )
    assert (report.study_uid, report.text) == ("1.2.840.7", "Clear.")


def test_one_text_below_several_orders_is_the_report_of_each():
    found = read(message(obr("A1"), obr("A2"), obx("Both sides.")))
    assert [(report.accession, report.text) for report in found] == [
        ("A1", "Both sides."),
        ("A2", "Both sides."),
    ]
    found = read(message(obr("A1"), obx("One."), obr("A2"), obx("Two.")))
    assert [(report.accession, report.text) for report in found] == [("A1", "One."), ("A2", "Two.")]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("UNICODE UTF-8", "utf-8"),
        ("8859/1", "latin-1"),
        ("8859/9", "iso8859-9"),
        ("", "utf-8"),
        ("", "cp1252"),
        ("ASCII", "latin-1"),
        ("UNICODE UTF-8", "cp1252"),  # a wrong label
        ("NO SUCH SET", "utf-8"),
        ("8859/1~ISO IR87", "latin-1"),
    ],
)
def test_character_sets(name, encoding):
    (report,) = read(message(obr(), obx("Ödem für später."), charset=name).encode(encoding))
    assert report.text == "Ödem für später."


def test_a_file_in_utf_16_and_one_with_a_byte_order_mark():
    text = message(obr(), obx("Ödem."))
    assert [r.text for r in read(text.encode("utf-16"))] == ["Ödem."]
    assert [r.text for r in read(text.encode("utf-8-sig"))] == ["Ödem."]


REFUSED = {
    "hl7_not_a_report": message(obr(), obx("Text."), kind="ADT^A01"),
    "hl7_without_text": message(obr()),
    "hl7_header_damaged": "MSH|\rPID|1\r",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_messages_without_a_report_say_why(reason):
    (found,) = read_messages(REFUSED[reason].encode())
    assert (found.reports, found.refusal) == ((), reason)


def test_marks_that_make_no_sense_are_refused():
    assert Delimiters.of("MSH|^~\\&|x") == Delimiters()
    assert (
        Delimiters.of("MSH|^~\\^") is None and Delimiters.of("MSHabcde") is None and Delimiters.of("") is None
    )


# --- versions -----------------------------------------------------------------------------------------------


def said(text: str, *, status="F", sent="20240102", accession="A1") -> str:
    return message(obr(accession, status=status), obx(text, status=status), sent=sent)


def test_the_latest_final_stands_wherever_it_is_in_the_file():
    first, last = said("Old.", sent="20240102"), said("New.", sent="20240103")
    assert texts(first, last) == texts(last, first) == ["New."]


def test_a_preliminary_report_gives_way_and_never_replaces_a_final():
    preliminary = said("Preliminary.", status="P", sent="20240101")
    assert texts(preliminary) == ["Preliminary."]
    assert texts(preliminary, said("Final.")) == ["Final."]
    assert texts(said("Final."), said("Late preliminary.", status="P", sent="20240105")) == ["Final."]
    (report,) = standing(read(preliminary))
    assert report.status == "preliminary"


def test_corrections_replace_and_deletions_leave_nothing():
    assert texts(said("Wrong."), said("Right.", status="C", sent="20240103")) == ["Right."]
    assert texts(said("Wrong."), said("Wrong.", status="D", sent="20240103")) == []
    assert texts(said("Wrong."), said("x", status="X", sent="20240103"), said("Again.", sent="20240104")) == [
        "Again."
    ]


def test_an_addendum_joins_unless_it_repeats_the_report():
    report = said("Clear lungs.")
    assert texts(report, said("Rib fracture seen.", status="A", sent="20240103")) == [
        "Clear lungs.\n\nADDENDUM:\nRib fracture seen."
    ]
    titled = message(obr("A1"), obx("Rib fracture seen.", code="1&ADT^X"), sent="20240103")
    assert texts(report, titled) == ["Clear lungs.\n\nADDENDUM:\nRib fracture seen."]
    whole = said("Clear lungs. ADDENDUM: rib fracture.", status="A", sent="20240103")
    assert texts(report, whole) == ["Clear lungs. ADDENDUM: rib fracture."]
    assert texts(said("Addendum: alone.", status="A")) == ["Addendum: alone."]


def test_orders_are_kept_apart():
    assert texts(said("One.", accession="A1"), said("Two.", accession="A2")) == ["One.", "Two."]
    other = said("Three.", accession="A1").replace("MRN77", "MRN78")
    assert texts(said("One.", accession="A1"), other) == ["One.", "Three."]


# --- properties ---------------------------------------------------------------------------------------------

ANY = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=60)


def escaped(text: str) -> str:
    """Escape as HL7 v2.5 2.7.1 says, the escape character first."""
    for mark, code in (("\\", "E"), ("|", "F"), ("^", "S"), ("~", "R"), ("&", "T"), ("\n", ".br")):
        text = text.replace(mark, f"\0{code}\0")
    return text.replace("\0", "\\")


@given(ANY.filter(lambda text: "\0" not in text))
def test_unescape_undoes_escape(text):
    assert unescape(escaped(text)) == text


@given(ANY)
def test_text_without_escapes_is_left_alone(text):
    assert unescape(text.replace("\\", "/")) == text.replace("\\", "/")


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"MSH|^~\\&|", b"\x0bMSH|^~\\&|a|b|c|d|e||ORU^R01\rOBR|\rOBX|1|TX||"]),
)
def test_any_bytes_give_messages_or_nothing(data, start):
    for found in read_messages(start + data):
        assert bool(found.reports) != bool(found.refusal)


@given(st.binary(max_size=40), st.sampled_from(["UNICODE UTF-8", "ISO IR87", "8859/5", "nonsense", ""]))
def test_any_bytes_can_be_decoded(data, name):
    assert isinstance(decode(data, charset(name)), str)


def test_long_hostile_escapes_are_fast():
    text = "\\" * 100_000 + "\\X" + "0" * 100_000 + "\\.br" * 50_000
    assert len(unescape(text)) > 100_000


@given(st.text(max_size=30))
def test_moments_sort_or_are_empty(value):
    assert moment(value) == "" or (len(moment(value)) == 14 and moment(value).isdigit())
