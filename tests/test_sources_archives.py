"""Archives become folders of plain files, or nothing (RELIABILITY rows 24 and 25)."""

from __future__ import annotations

import io
import lzma
import os
import random
import resource
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.errors import BadArchive, DecompressionLimit, MedvlError, StoreError, UsageError
from medvl.preprocess.sources.archives import ArchiveLimits, safe_parts, unpack
from medvl.preprocess.sources.tar import tar_members

FILES = {
    "a/one.txt": b"one",
    "a/" + "deep/" * 30 + "x": bytes(range(256)) * 9,
    "zero": b"",
    "ü.txt": b"u",
}
MARKER = "medvl-escape-marker"


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode="w", **options) -> Path:
    with tarfile.open(path, mode, **options) as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".unpacked.json"
    }


# --- what is unpacked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_every_dialect_and_compression_give_their_files(tmp_path, mode, form):
    # the standard library's writer is the oracle of the format
    archive = tar(
        tmp_path / "x", *((entry(name), data) for name, data in FILES.items()), mode=mode, format=form
    )
    summary = unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == FILES
    assert (summary.files, summary.bytes, summary.reused) == (4, sum(map(len, FILES.values())), False)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zips_give_their_files(tmp_path, method):
    unpack(zipped(tmp_path / "x.zip", *FILES.items(), method=method), tmp_path / "out")
    assert files(tmp_path / "out") == FILES


def test_modes_owners_and_set_user_bits_are_not_taken_over(tmp_path):
    archive = tar(tmp_path / "x", (entry("tool", mode=0o6777, uid=0), b"#!/bin/sh"))
    unpack(archive, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out" / "tool").stat().st_mode) == 0o600
    assert (tmp_path / "out" / "tool").stat().st_uid == os.geteuid()


def test_a_finished_extraction_is_left_and_another_archive_refused(tmp_path):
    archive = zipped(tmp_path / "x.zip", ("a", b"1"))
    first = unpack(archive, tmp_path / "out")
    (tmp_path / "out" / "a").write_bytes(b"touched")
    again = unpack(archive, tmp_path / "out")
    assert again.reused and again.digest == first.digest
    assert files(tmp_path / "out") == {"a": b"touched"}
    with pytest.raises(UsageError, match="holds other files than those of this archive"):
        unpack(zipped(tmp_path / "y.zip", ("a", b"2")), tmp_path / "out")


def test_a_killed_extraction_is_done_again(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").write_bytes(b"left by a killed run")
    unpack(zipped(tmp_path / "x.zip", ("a", b"1")), tmp_path / "out")
    assert files(tmp_path / "out") == {"a": b"1"} and not (tmp_path / "out.partial").exists()


def test_an_extraction_that_is_killed_leaves_nothing_that_passes_for_whole(tmp_path):
    archive = tar(tmp_path / "x", *((entry(str(number)), b"1" * 5000) for number in range(20)))
    program = (
        "import os, sys; from pathlib import Path\n"
        "from medvl.preprocess.sources.archives import unpack\n"
        "stop = iter([False] * 7 + [True])\n"
        "kill = lambda *call: os.kill(os.getpid(), 9) if next(stop) else None\n"
        "unpack(Path(sys.argv[1]), Path(sys.argv[2]), progress=kill)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(archive), str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").exists()
    assert unpack(archive, tmp_path / "out").files == 20
    assert not (tmp_path / "out.partial").exists()


def test_progress_counts_bytes_of_the_archive(tmp_path):
    calls: list[tuple[int, int, str]] = []
    archive = tar(tmp_path / "x", (entry("a"), b"1" * 5000), (entry("b"), b"2"))
    unpack(archive, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert [what for *_, what in calls] == ["unpacking"] * 2
    assert 0 < calls[0][0] <= calls[1][0] <= calls[1][1] == archive.stat().st_size


# --- what is refused ----------------------------------------------------------------------------------------

LINK = {"linkname": f"../{MARKER}"}
HOSTILE_TARS = {
    "climbs": ([(entry(f"../{MARKER}"), b"x")], "leads out of the folder"),
    "climbs inside": ([(entry(f"a/../../{MARKER}"), b"x")], "leads out of the folder"),
    "climbs by backslash": ([(entry(f"a\\..\\..\\{MARKER}"), b"x")], "leads out of the folder"),
    "absolute": ([(entry("ABSOLUTE"), b"x")], "leads out of the folder"),
    "a drive": ([(entry(f"C:/{MARKER}"), b"x")], "leads out of the folder"),
    "a folder that climbs": ([(entry("../made", tarfile.DIRTYPE), b"")], "leads out of the folder"),
    "symbolic link, then a file through it": (
        [(entry("door", tarfile.SYMTYPE, linkname=".."), b""), (entry(f"door/{MARKER}"), b"x")],
        "holds a symbolic link",
    ),
    "hard link": ([(entry("x", tarfile.LNKTYPE, **LINK), b"")], "holds a hard link"),
    "character device": ([(entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3), b"")], "holds a device"),
    "block device": ([(entry("sda", tarfile.BLKTYPE), b"")], "holds a device"),
    "pipe": ([(entry("pipe", tarfile.FIFOTYPE), b"")], "holds a pipe"),
    "sparse": ([(entry("sparse", tarfile.GNUTYPE_SPARSE), b"")], "holds a sparse file"),
    "unknown kind": ([(entry("odd", b"Q"), b"")], "holds a special entry"),
    "two of one name": ([(entry("a"), b"1"), (entry("./a"), b"2")], "two entries of one name"),
    "a file as a folder": ([(entry("a"), b"1"), (entry("a/b"), b"2")], "two entries of one name"),
    "a folder as a file": ([(entry("a/b"), b"1"), (entry("a"), b"2")], "two entries of one name"),
    "newline": ([(entry("a\nb"), b"1")], "control characters"),
    "only a dot": ([(entry("./."), b"1")], "has 0 components"),
    "long component": ([(entry("x" * 256), b"1")], "the longest of 256 bytes"),
    "deep": ([(entry("d/" * 70 + "x"), b"1")], "has 71 components"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_hostile_tars_are_refused_whole(tmp_path, case):
    entries, match = HOSTILE_TARS[case]
    good = (entry("good"), b"fine")
    for info, _ in entries:
        if info.name == "ABSOLUTE":
            info.name = str(tmp_path / MARKER)
    nest = tmp_path / "deep" / "er"
    nest.mkdir(parents=True)
    archive = tar(nest / "x.tar", good, *entries)
    with pytest.raises(BadArchive, match=match):
        unpack(archive, nest / "out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "er", "x.tar"]


def zip_entry(name: str, **fields) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


HOSTILE_ZIPS = {
    "climbs": ((f"../../{MARKER}", b"x"), "leads out of the folder"),
    "climbs by backslash": ((f"..\\{MARKER}", b"x"), "leads out of the folder"),
    "absolute": ((f"/{MARKER}", b"x"), "leads out of the folder"),
    "a folder that climbs": (("../made/", b""), "leads out of the folder"),
    "a link": (
        (zip_entry("door", external_attr=(stat.S_IFLNK | 0o777) << 16), b".."),
        "holds a link or a device",
    ),
    "a method that is not read": (
        (zip_entry("x", compress_type=zipfile.ZIP_LZMA), b"x"),
        "compression method 14",
    ),
}


@pytest.mark.parametrize("case", HOSTILE_ZIPS)
def test_hostile_zips_are_refused_whole(tmp_path, case):
    bad, match = HOSTILE_ZIPS[case]
    nest = tmp_path / "deep" / "er"
    nest.mkdir(parents=True)
    archive = zipped(nest / "x.zip", ("good", b"fine"), bad)
    with pytest.raises(BadArchive, match=match):
        unpack(archive, nest / "out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "er", "x.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_entries_of_one_name_are_refused_in_a_zip(tmp_path):
    archive = zipped(tmp_path / "x.zip", ("a", b"1"), ("a", b"2"))
    with pytest.raises(BadArchive, match="two entries of one name"):
        unpack(archive, tmp_path / "out")


def patched(path: Path, at: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def test_an_encrypted_zip_is_named(tmp_path):
    archive = zipped(tmp_path / "x.zip", ("a", b"1"))
    central = archive.read_bytes().index(b"PK\1\2")
    patched(archive, central + 8, b"\1")  # general purpose bit 0, APPNOTE 4.4.4
    with pytest.raises(BadArchive, match="the zip is encrypted"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("declared", [3, 2**32 - 2])
def test_a_declared_size_is_not_believed(tmp_path, declared):
    archive = zipped(tmp_path / "x.zip", ("a", b"1" * 5000))
    central = archive.read_bytes().index(b"PK\1\2")
    patched(archive, central + 24, struct.pack("<I", declared))
    with pytest.raises(BadArchive, match="the archive is damaged"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


BOMB = ArchiveLimits(ratio_floor=2**16)


def test_bombs_are_stopped_by_the_bytes_that_they_write(tmp_path):
    zeros = bytes(2**21)
    with pytest.raises(DecompressionLimit, match=r"of [\d,]+ bytes grows to more than [\d,]+; .* 100 times"):
        unpack(zipped(tmp_path / "x.zip", ("a", zeros)), tmp_path / "out", limits=BOMB)
    for mode in ("w:gz", "w:bz2", "w:xz"):
        with pytest.raises(DecompressionLimit, match="the limit is 100 times its size"):
            unpack(tar(tmp_path / "t", (entry("a"), zeros), mode=mode), tmp_path / "out", limits=BOMB)
    small = ArchiveLimits(max_bytes=1000)
    with pytest.raises(DecompressionLimit, match="grows to more than 1,000;"):
        unpack(tar(tmp_path / "t", (entry("a"), zeros)), tmp_path / "out", limits=small)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_too_many_entries_are_counted_before_they_cost_memory(tmp_path):
    limits = ArchiveLimits(max_entries=5)
    many = [(f"{number}", b"") for number in range(6)]
    with pytest.raises(DecompressionLimit, match="more than 5 entries"):
        unpack(zipped(tmp_path / "x.zip", *many), tmp_path / "out", limits=limits)
    with pytest.raises(DecompressionLimit, match="more than 5 entries"):
        unpack(tar(tmp_path / "t", *((entry(n), d) for n, d in many)), tmp_path / "out", limits=limits)
    unpack(zipped(tmp_path / "x.zip", *many[:5]), tmp_path / "out", limits=limits)


def test_a_header_that_asks_for_memory_is_refused(tmp_path):
    archive = tar(tmp_path / "x", (entry("a", tarfile.XHDTYPE), b"x" * 70_000))
    with pytest.raises(DecompressionLimit, match=r"a header .* has 70,000 bytes; the limit is 65,536"):
        unpack(archive, tmp_path / "out")


def test_an_xz_header_that_asks_for_memory_is_refused(tmp_path):
    data = bytearray(lzma.compress(tar(tmp_path / "t", (entry("a"), b"1")).read_bytes()))
    header = data[12 : 12 + (data[12] + 1) * 4]
    header[header.index(b"\x21\x01") + 2] = 38  # LZMA2, one byte of properties: 38 is 2 GiB (xz 5.3.1)
    header[-4:] = struct.pack("<I", zlib.crc32(bytes(header[:-4])))
    data[12 : 12 + len(header)] = header
    (tmp_path / "x").write_bytes(bytes(data))
    with pytest.raises(BadArchive, match=r"damaged \(LZMAError"):
        unpack(tmp_path / "x", tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_cut_archive_is_never_taken_for_a_whole_one(tmp_path, mode):
    noise = random.Random(3).randbytes(3000)
    whole = tar(tmp_path / "x", (entry("a"), noise), (entry("b"), noise), mode=mode).read_bytes()
    limit = 512 + 3072 + 512 + 3000 if mode == "w" else len(whole)  # the end marks of a plain tar may go
    for length in range(1, limit, 97):
        if mode == "w" and length == 512 + 3072:
            continue  # the end of a member, where a tar without end marks may stop
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(BadArchive):
            unpack(tmp_path / "cut", tmp_path / "out")


def test_what_is_no_archive_is_said(tmp_path):
    for name, data in {"empty": b"", "text": b"hello", "zeros": bytes(2048), "long": b"x" * 4096}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadArchive, match="neither a zip nor a tar"):
            unpack(tmp_path / name, tmp_path / f"{name}.out")
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4")
    with pytest.raises(BadArchive, match=r"damaged .no end record"):
        unpack(tmp_path / "cut.zip", tmp_path / "b")
    with pytest.raises(BadArchive, match="the archive cannot be read: No such file"):
        unpack(tmp_path / "gone.zip", tmp_path / "c")


def test_a_full_disk_is_said_and_nothing_stays(tmp_path):
    archive = zipped(tmp_path / "x.zip", ("a", os.urandom(200_000)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(StoreError, match="cannot be unpacked: File too large"):
            unpack(archive, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


# --- properties ---------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_a_name_that_passes_stays_below_its_folder(name):
    try:
        parts = safe_parts(name)
    except BadArchive:
        return
    root = Path("/nowhere/root")
    assert Path(os.path.normpath(root.joinpath(*parts))).is_relative_to(root)
    assert root.joinpath(*parts) != root


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_archives_raise_typed_errors_alone(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    if data.draw(st.booleans()):
        archive = tar(folder / "x", (entry("a/b"), b"1" * 700), (entry("c" * 120), b"2"))
    else:
        archive = zipped(folder / "x", ("a/b", b"1" * 700), ("c", b"2"))
    content = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    archive.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        unpack(archive, folder / "out")
    except MedvlError:
        assert not (folder / "out").exists()
    assert {path.name for path in folder.iterdir()} <= {"x", "out"}


def test_members_that_nobody_reads_are_passed_over(tmp_path):
    archive = tar(tmp_path / "x", *((entry(name), data) for name, data in FILES.items()))
    with archive.open("rb") as stream:
        assert [member.name for member in tar_members(stream)] == list(FILES)
