"""Payloads: packed arrays of any rank, and source codestreams that carry the picture and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zlib

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo
from test_store import record

from medvl.errors import StoreError
from medvl.store import decode, original_payload, pack, pixel_hash, read_pixels, unpack, write_shard

NAME = b"DOE^JOHN^19400101"


def film(shape=(120, 100), seed=0):
    """A film-like picture with noise: JPEG makes it smaller than any lossless packing."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    return np.clip(128 + 90 * np.cos(3 * x) * np.sin(2 * y) + random.normal(0, 9, shape), 0, 255).astype(
        np.uint8
    )


def shown(path):
    with Pillow.open(path) as picture:
        return np.asarray(picture)


def named_exif():
    exif = Pillow.Exif()
    exif[0x010E] = NAME.decode()  # ImageDescription
    return exif


# --- packed arrays ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 9, 8, 7), (16, 16, 5), (1, 1), (3,)])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_arrays_of_any_rank_come_back(tmp_path, shape, dtype):
    array = np.random.default_rng(0).integers(-1000 if dtype != "uint8" else 0, 255, shape).astype(dtype)
    given_record = record(shape=shape, dtype=dtype)
    placed = write_shard(tmp_path / "000000.tar", [(given_record, array)])
    again = read_pixels(tmp_path, placed[0])
    assert again.dtype == array.dtype and np.array_equal(again, array) and placed[0].payload == "npy.b2"
    again[...] = 0  # its own memory: a caller may work in place


def test_other_tools_read_the_payload():
    # what the layout says, by the two libraries alone: blosc2 around a .npy file
    array = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    assert np.array_equal(np.load(io.BytesIO(blosc2.decompress2(pack(array)))), array)


def test_the_bytes_of_a_payload_are_fixed():
    # A store prepared on two machines, or in two years, has one hash; a codec update that moves it is news.
    volume = (np.arange(20 * 20 * 20).reshape(20, 20, 20) % 251 - 100).astype(np.int16)
    assert pack(volume) == pack(np.asfortranarray(volume)) == pack(volume.copy())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_damage_of_a_payload_is_a_typed_error_or_an_array(place, value, cut):
    payload = bytearray(pack(np.arange(64, dtype=np.int16).reshape(8, 8)))
    if cut:
        payload = payload[: place % len(payload)]
    else:
        payload[place % len(payload)] = value
    try:
        assert isinstance(unpack(bytes(payload)), np.ndarray)
    except StoreError as error:
        assert "is not a packed array" in str(error)


def test_a_payload_that_announces_too_much_is_refused_unread(tmp_path):
    bomb = pack(np.zeros(2**24, np.uint8))
    assert len(bomb) < 2**13
    with pytest.raises(StoreError, match=f"{len(bomb)} bytes is not a packed array"):
        unpack(bomb, most_bytes=2**20)
    with pytest.raises(StoreError, match="not a packed array"):
        decode(bomb, "npy.b2", shape=(3, 4), dtype="uint8")


def test_a_payload_of_another_shape_than_its_record_is_refused():
    payload = pack(np.zeros((3, 4), np.uint8))
    with pytest.raises(StoreError, match=r"holds uint8 \(3, 4\); its record says uint8 \(4, 3\)"):
        decode(payload, "npy.b2", shape=(4, 3), dtype="uint8")
    with pytest.raises(StoreError, match="its record says int8"):
        decode(payload, "npy.b2", shape=(3, 4), dtype="int8")
    with pytest.raises(StoreError, match=r"coded as 'jp2'; this version reads npy\.b2, vol\.b2, jpg, png"):
        decode(payload, "jp2")
    with pytest.raises(StoreError, match="not the 8-bit grey jpg of its record"):
        decode(payload, "jpg")


def test_objects_are_never_unpacked():
    stream = io.BytesIO()
    np.save(stream, np.array([{}], object), allow_pickle=True)
    with pytest.raises(StoreError, match="not a packed array"):
        unpack(blosc2.compress2(stream.getvalue(), typesize=1))


def test_the_pixel_hash_is_that_of_shape_and_bytes():
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = hashlib.blake2b(b"(3, 4)" + bytes(range(12)), digest_size=12).hexdigest()
    assert pixel_hash(array) == pixel_hash(np.asfortranarray(array)) == expected
    assert pixel_hash(array) != pixel_hash(array.T)


# --- codestreams --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 2}, {"optimize": True}]
)
def test_a_jpeg_is_kept_without_its_metadata(tmp_path, options):
    path = tmp_path / "film.jpg"
    Pillow.fromarray(film()).save(path, quality=70, exif=named_exif(), comment=NAME, dpi=(72, 72), **options)
    path.write_bytes(path.read_bytes() + NAME)  # some devices write behind the end
    assert path.read_bytes().count(NAME) == 3
    array = shown(path)
    stream, kind = original_payload(path, array)
    assert kind == "jpg" and NAME not in stream and b"Exif" not in stream and b"JFIF" not in stream
    assert np.array_equal(decode(stream, "jpg", shape=array.shape, dtype="uint8"), array)
    with Pillow.open(io.BytesIO(stream)) as again:
        assert (
            not set(again.info) - {"progressive", "progression"}
            and not again.getexif()
            and again.format == "JPEG"
        )


def test_a_png_is_kept_without_its_metadata(tmp_path):
    path, about = tmp_path / "film.png", PngInfo()
    about.add_text("Patient", NAME.decode())
    about.add_itxt("Description", NAME.decode(), zip=True)
    Pillow.fromarray(film()).save(path, pnginfo=about, exif=named_exif(), dpi=(72, 72))
    path.write_bytes(path.read_bytes() + NAME)
    assert path.read_bytes().count(NAME) == 3
    stream, kind = original_payload(path, film())
    assert kind == "png" and NAME not in stream
    chunks, at = [], 8
    while at < len(stream):
        chunks.append(stream[at + 4 : at + 8])
        at += 12 + int.from_bytes(stream[at : at + 4])
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
    assert np.array_equal(decode(stream, "png", shape=(120, 100), dtype="uint8"), film())


def chunk(kind, data):
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png_of(array, *, hidden=b"", depth=8, before=b"", interlace=0, level=6):
    rows, columns = array.shape
    lines = b"".join(b"\0" + row.tobytes() for row in array)
    header = columns.to_bytes(4) + rows.to_bytes(4) + bytes((depth, 0, 0, 0, interlace))
    parts = [
        chunk(b"IHDR", header),
        before,
        chunk(b"IDAT", zlib.compress(lines, level) + hidden),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write(path, data):
    path.write_bytes(data)
    return path


def test_files_that_cannot_stand_for_the_array_are_left_aside(tmp_path):
    array = film()
    plain = write(tmp_path / "plain.png", png_of(array))
    assert original_payload(plain, array) == (plain.read_bytes(), "png")
    transparent = png_of(array, before=chunk(b"tRNS", b"\0\7"))
    flipped = bytearray(png_of(array))
    flipped[60] ^= 1
    jpeg = io.BytesIO()
    Pillow.fromarray(array).save(jpeg, format="JPEG")
    scan = jpeg.getvalue()
    cases = {
        "another size": (plain, film((100, 120))),
        "a volume": (plain, np.zeros((3, 120, 100), np.uint8)),
        "16 bits": (plain, array.astype(np.uint16)),
        "bytes behind the pixels": (write(tmp_path / "hidden.png", png_of(array, hidden=NAME)), array),
        "interlaced": (write(tmp_path / "lace.png", png_of(array, interlace=1)), array),
        "transparent": (write(tmp_path / "clear.png", transparent), array),
        "damaged": (write(tmp_path / "damaged.png", bytes(flipped)), array),
        "cut": (write(tmp_path / "cut.png", png_of(array)[:-20]), array),
        "no picture": (write(tmp_path / "text.txt", NAME), array),
        "no pixels": (write(tmp_path / "no.png", png_of(array)[:33]), array),
        "cut jpeg": (write(tmp_path / "cut.jpg", scan[:-2]), array),
        "jpeg header alone": (write(tmp_path / "head.jpg", scan[:30]), array),
        "junk between segments": (write(tmp_path / "junk.jpg", scan[:20] + NAME + scan[20:]), array),
        "another jpeg size": (write(tmp_path / "size.jpg", scan), film((64, 64))),
    }
    for name, (path, wanted) in cases.items():
        assert original_payload(path, wanted) is None, name


def test_colour_is_left_aside(tmp_path):
    for suffix in ("jpg", "png"):
        Pillow.fromarray(np.stack([film()] * 3, -1)).save(tmp_path / f"c.{suffix}")
        assert original_payload(tmp_path / f"c.{suffix}", film()) is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_bytes_of_a_file_break_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x"
    stream = io.BytesIO()
    Pillow.fromarray(film((16, 16))).save(stream, format=data.draw(st.sampled_from(["JPEG", "PNG"])))
    mutated = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(mutated[: data.draw(st.integers(0, len(mutated)))]))
    found = original_payload(path, film((16, 16)))
    assert found is None or found[1] in ("jpg", "png")


def test_a_shard_keeps_the_codestream_only_where_it_is_exact_and_smaller(tmp_path):
    path = tmp_path / "film.jpg"
    Pillow.fromarray(film()).save(path, quality=70)
    array = shown(path)
    stream, _ = original_payload(path, array)
    base = dataclasses.replace(record(), shape=array.shape)
    ids = [dataclasses.replace(base, record_id=f"r{k}") for k in range(4)]
    altered = array.copy()
    altered[0, 0] ^= 1
    flat = np.zeros((120, 100), np.uint8)
    samples = [
        (ids[0], array, stream, "jpg"),
        (ids[1], altered, stream, "jpg"),  # one grey level off
        (ids[2], flat, png_of(flat, level=0), "png"),  # exact, and larger than the packed array
        (ids[3], array, b"\xff\xd8 nonsense", "jpg"),
    ]
    placed = write_shard(tmp_path / "000000.tar", samples)
    assert [r.payload for r in placed] == ["jpg", "npy.b2", "npy.b2", "npy.b2"]
    assert placed[0].size == len(stream) < len(pack(array)) and len(png_of(flat, level=0)) > len(pack(flat))
    for each, expected in zip(placed, (array, altered, flat, array), strict=True):
        assert np.array_equal(read_pixels(tmp_path, each), expected)


# webdataset 1.0.2 leaves the shard open for the garbage collector to close.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_decodes_the_codestream_by_its_name(tmp_path):
    import webdataset

    path = tmp_path / "film.jpg"
    Pillow.fromarray(film()).save(path, quality=70)
    array = shown(path)
    samples = [(dataclasses.replace(record(), shape=array.shape), array, *original_payload(path, array))]
    write_shard(tmp_path / "000000.tar", samples)
    stream = webdataset.WebDataset(str(tmp_path / "000000.tar"), shardshuffle=False).decode("pil")
    sample = next(iter(stream))
    # the pipeline of open_clip: decode("pil"), then jpg or png as image, txt as text
    assert np.array_equal(np.asarray(sample["jpg"].convert("L")), array)
    assert sample["txt"] == "A 4.2 cm mass."
