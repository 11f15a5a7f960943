"""What every test stands on: checked shapes, no network, the shared data if it is there."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

# Every annotation of medvl is checked at run time in the tests.
sys.path.insert(0, str(Path(__file__).parent))  # the hook imports the checker by its name
install_import_hook("medvl", "shapecheck.check")

import pytest  # noqa: E402 - the hook must come first

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Any connection that leaves this machine fails the test that makes it."""
    connect = socket.socket.connect

    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else ""
        if self.family != socket.AF_UNIX and host not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {host!r}")
        return connect(self, address)

    socket.socket.connect = guarded
    yield
    socket.socket.connect = connect


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real, licensed development data that lies beside a checkout."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared development data are not here")
    return folder


TINY = (
    "schedule.steps=3",
    "data.batch=8",
    "image.options={widths: [8, 16], blocks: [1, 1]}",
    "text.options={layers: 1, width: 32, heads: 2}",
    "projection.dim=16",
    "loop.every_steps=3",
)
"""Overrides that make a run of seconds, for tests of what comes after training."""


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> Path:
    """A store of 40 phantom studies."""
    import medvl

    folder = tmp_path_factory.mktemp("tiny")
    medvl.phantom(folder / "films", n=40, seed=5, size_px=128, workers=1)
    medvl.prepare(
        folder / "films",
        folder / "store",
        pixels={"longest_px": 64},
        split=(0.6, 0.2, 0.2),
        workers=1,
        key=b"k" * 32,
    )
    return folder / "store"


@pytest.fixture(scope="session")
def tiny_run(tiny_store) -> Path:
    """A run of three steps on the tiny store."""
    import medvl

    run = tiny_store.parent / "run"
    medvl.train(tiny_store, run, overrides=TINY)
    return run


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run) -> Path:
    """The tiny run as a bundle with its ONNX graphs."""
    import medvl

    bundle = tiny_run.parent / "bundle"
    medvl.export(tiny_run, bundle)
    return bundle
