"""A modelled engine's server for the commands that measure one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from saga.engine.server import EngineServer, ServerSettings


@contextmanager
def engine(settings: ServerSettings) -> Iterator[str]:
    """It runs on a thread of its own; its URL."""
    started, url = threading.Event(), [""]
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = EngineServer(settings)
        url[0] = await server.start()
        started.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(5)
    try:
        yield url[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        loop.close()
