"""The record store on disk: WebDataset tar shards, a Parquet index and a manifest.

Layout of a store::

    store.json         format, modality, specs with digests, counts, options of the run
    index.parquet      one row a record: text, labels, geometry, hashes, shard, offset, size, crc32
    shards/000000.tar  per record <id>.npy.b2 (blosc2-compressed .npy), the <id>.jpg or <id>.png of the
                       source, or <id>.vol.b2 (a volume in chunks) and <id>.parts.vol.b2 (the number of
                       each voxel's part); <id>.txt and <id>.json
    failures.jsonl     one line a failed item: token, rule, message
    quality.html       the page to look at
    private/           pseudonym key and the table from file tokens to source paths: never share it

Nothing outside ``private/`` names a patient or a source file.
"""

from medvl.store.files import file_sha256, new_folder, write_atomic
from medvl.store.payload import decode, original_payload, pack, pixel_hash, unpack
from medvl.store.reading import Store, index_digest
from medvl.store.schema import FORMAT, INDEX_SCHEMA, index_bytes, record_row, row_record
from medvl.store.shards import read_parts_payload, read_payload, read_pixels, write_payloads, write_shard
from medvl.store.volumes import pack_volume, unpack_volume

__all__ = [
    "FORMAT",
    "INDEX_SCHEMA",
    "Store",
    "decode",
    "file_sha256",
    "index_bytes",
    "index_digest",
    "new_folder",
    "original_payload",
    "pack",
    "pack_volume",
    "pixel_hash",
    "read_parts_payload",
    "read_payload",
    "read_pixels",
    "record_row",
    "row_record",
    "unpack",
    "unpack_volume",
    "write_atomic",
    "write_payloads",
    "write_shard",
]
