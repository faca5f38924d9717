"""The C core, compiled once for all tests of it; without a compiler they are skipped."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.native.building import COMPILER, CORE, HERE, NO_COMPILER, compile_c
from tests.native.rig import CDEF, Pair


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """cffi's view of the rig, and the loaded library."""
    if COMPILER is None:
        pytest.skip(NO_COMPILER)
    cffi = pytest.importorskip("cffi", reason="cffi is not installed")
    library = tmp_path_factory.mktemp("native") / "core.so"
    compile_c(COMPILER, library, [HERE / "rig.c", *CORE], "-O1", "-g", "-fPIC", "-shared")
    ffi = cffi.FFI()
    ffi.cdef(CDEF)
    return ffi, ffi.dlopen(str(library))


@pytest.fixture
def make_pair(core: tuple[Any, Any]) -> Generator[Callable[..., Pair], None, None]:
    """New pairs of C core and reference; all are closed in the end."""
    made: list[Pair] = []

    def make(parked_max: int = 16384) -> Pair:
        made.append(Pair(*core, parked_max))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()


@pytest.fixture(scope="session")
def build_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built")
