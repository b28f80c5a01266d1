"""Which core runs: the Python sources, or the same sources compiled (`native/build.py`). Chosen by SAGA_CORE, once.

SAGA_CORE=python (or nothing) takes the sources as they are, SAGA_CORE=native the compiled modules. Asking for what is
not there, or was compiled from other sources than these, is an error: nothing is chosen silently. Same events, same
commands, same figures; only the time differs. It refuses to know what the modules do.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

CORES = ("python", "native")
_PACKAGE = "saga_native"


class _Compiled:
    """Finds modules in the folder that `native/build.py` filled, before the sources are looked at."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        suffix = EXTENSION_SUFFIXES[0]
        self._files = {name: folder.joinpath(*name.split(".")).with_suffix(suffix) for name in names}
        self._files[f"{_PACKAGE}__mypyc"] = folder / f"{_PACKAGE}__mypyc{suffix}"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The compiled module of that name, None where there is none."""
        file = self._files.get(fullname)
        return None if file is None else spec_from_file_location(fullname, file)


def choose(core: str, source: Path) -> None:
    """Let this process import that core. source: the folder of the package `saga`.

    Before anything of the core is imported. Raises ImportError where it is not there, or not of these sources. Reads
    the sources of the compiled modules: milliseconds.
    """
    if core not in CORES:
        raise ImportError(f"SAGA_CORE={core!r}: expected one of {', '.join(CORES)}")
    if core == "python":
        return
    try:
        built = import_module(_PACKAGE)
    except ModuleNotFoundError:
        raise ImportError("SAGA_CORE=native: the compiled core is not there; `make native` builds it") from None
    sources: Mapping[str, str] = built.SOURCES
    stale = [name for name, digest in sources.items() if _digest(source, name) != digest]
    if stale:
        raise ImportError(f"SAGA_CORE=native: {stale[0]} has changed since it was compiled; `make native` does it anew")
    sys.meta_path.insert(0, _Compiled(Path(str(built.__file__)).parent, list(sources)))


def _digest(source: Path, name: str) -> str:
    file = source.parent.joinpath(*name.split(".")).with_suffix(".py")
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
