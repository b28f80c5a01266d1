"""Goes on with a coroutine whose first step was made by hand, without a task, because most never need a second.

A file of its own because a generator can only be awaited where it is not compiled (`native/build.py`). It refuses to
know what the coroutine does.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def resumed(started: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:  # noqa: ANN401  a future's kind
    """What is left of a coroutine whose first step was made by hand, which is waiting for `waits_for`."""
    try:
        while True:
            try:
                value = yield waits_for
            except BaseException as error:  # noqa: BLE001  the coroutine decides what it means
                waits_for = started.throw(error)
            else:
                waits_for = started.send(value)
    except StopIteration as ended:
        result: T = ended.value
        return result
    finally:
        started.close()
