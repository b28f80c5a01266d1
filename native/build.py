"""Compile the hot modules of `src/saga` with mypyc, into the environment that runs this: `make native`.

There is one source: what is compiled is the Python that is tested, checked by mypy and read. `SAGA_CORE=native` chooses
the compiled modules (`saga.core`), anything else the Python ones. What goes in is what a simulated call passes through:
the modelled engine, the scheduler with its policies and the workflow model, the driver; and what a call passes through
in the gateway, from the bytes of a client to those of a worker and back. What msgspec makes stays out (`events`,
`commands`, settings, the shapes of bodies and answers): it needs classes as they are written, and is native already.

What mypyc does not keep, the code must not use: identity of tuples and floats, objects made without `__init__`, classes
changed or replaced at run time; generators that others await; an attribute that is set to None and looked at again
after a call that sets it (mypy takes it to be None still: let a method set it). The tests run over both.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
PACKAGE = "saga_native"
COMPILED = (
    "saga/views.py",
    "saga/cache/*.py",
    "saga/engine/batching.py",
    "saga/engine/calls.py",
    "saga/engine/host_tier.py",
    "saga/engine/kv_pool.py",
    "saga/engine/latency.py",
    "saga/engine/link.py",
    "saga/engine/queues.py",
    "saga/fairness/*.py",
    "saga/gateway/answers.py",
    "saga/gateway/body.py",
    "saga/gateway/contracts.py",
    "saga/gateway/conversations.py",
    "saga/gateway/front.py",
    "saga/gateway/http1.py",
    "saga/gateway/identity.py",
    "saga/gateway/journal.py",
    "saga/gateway/metrics.py",
    "saga/gateway/pools.py",
    "saga/gateway/reading.py",
    "saga/gateway/relay.py",
    "saga/gateway/rewriting.py",
    "saga/gateway/scheduling.py",
    "saga/gateway/sse.py",
    "saga/gateway/tenants.py",
    "saga/gateway/tools.py",
    "saga/gateway/upstream.py",
    "saga/gateway/workers.py",
    "saga/ordering/*.py",
    "saga/routing/*.py",
    "saga/scheduler/*.py",
    "saga/sim/decisions.py",
    "saga/sim/driver.py",
    "saga/sim/fleet.py",
    "saga/sim/log.py",
    "saga/vllm_plugin/sessions.py",
    "saga/wire.py",
    "saga/workflow/*.py",
    "saga/workloads/conversation.py",
    "saga/workloads/plan.py",
)
_TABLE = '''"""Made by native/build.py: compiled modules of saga, and what they were compiled from."""

SOURCES = {sources!r}
'''


def modules() -> dict[str, Path]:
    """Source file by module name; packages themselves are left as they are."""
    files = sorted(path for pattern in COMPILED for path in SOURCE.glob(pattern) if path.name != "__init__.py")
    return {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in files}


def digests() -> dict[str, str]:
    """What tells one version of a source from another, by module name."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in modules().items()}


def build(folder: Path) -> None:
    """Compile into `folder`. mypyc and the C compiler say what is wrong where something is."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    sources = digests()
    relative = [str(path.relative_to(SOURCE)) for path in modules().values()]
    os.chdir(SOURCE)
    work = folder / "work"
    # gcc's level 3 takes twice as long and gains nothing here; one file for all modules takes twice as long, too
    extensions = mypycify(
        ["--strict", *relative],
        target_dir=str(work),
        group_name=PACKAGE,
        opt_level="1",
        debug_level="0",
        multi_file=True,
    )
    command = build_ext(Distribution({"name": PACKAGE, "ext_modules": extensions}))
    command.build_lib, command.build_temp = str(folder), str(work / "objects")
    command.ensure_finalized()
    command.run()
    shutil.rmtree(work)
    (folder / "__init__.py").write_text(_TABLE.format(sources=sources))


def is_built(place: Path) -> bool:
    """Whether `place` holds what would be built now, for this Python."""
    table = place / "__init__.py"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return (place / f"{PACKAGE}__mypyc{suffix}").exists() and table.read_text() == _TABLE.format(sources=digests())


def main() -> None:
    """Build beside the old one, then put it in its place; nothing where it is there. Exits with 1 where that fails."""
    if len(sys.argv) > 1:
        build(Path(sys.argv[1]))
        return
    place = Path(sysconfig.get_path("platlib")) / PACKAGE
    if is_built(place):
        return
    print("Compiling the core (a minute or two, once per change of it) ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{PACKAGE}-") as made:
        done = subprocess.run([sys.executable, __file__, made], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{done.stdout}{done.stderr}\nThe core could not be compiled: see above.", file=sys.stderr)
            raise SystemExit(1)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(made, place)


if __name__ == "__main__":
    main()
