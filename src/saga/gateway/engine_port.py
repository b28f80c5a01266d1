"""The coordinator's port: one gRPC stream per engine, on the gateway's own event loop.

A stream begins with a Hello and gets a Welcome; then reports and answers come up, directives go down. With a key every
stream must bring it (compared in constant time). Bounds: streams, bytes of a message, time for the Hello. A stream that
is refused or broken costs the engine nothing but its link. Needs grpcio (the extra `coordinator`).

A loop in a thread of its own would be the alternative: in the one run that was made of both, round trips and the data
plane were about the same and it took more CPU (benchmarks/bench_link.py compares them). It refuses to know what is said
(`engines`).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import Any

import grpc
import grpc.aio

from saga.errors import PeerError, UsageError
from saga.gateway.engines import EngineLink, EngineMeter, Engines
from saga.gateway.journal import say
from saga.protocol import KEY_HEADER, MAX_MESSAGE_BYTES, METHOD, SERVICE, read_from_engine, write
from saga.protocol import coordinator_pb2 as wire

_MAX_STREAMS = 2_048
_HELLO_S = 10.0
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8_192),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class EnginePort:
    """`await start(host, port)`, then engines may connect until `await stop()`."""

    def __init__(self, engines: Engines, meter: EngineMeter, key: str = "") -> None:
        self._engines = engines
        self._meter = meter
        self._key = key
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port. Raises PeerError where it is taken."""
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_MAX_STREAMS)
        handler = grpc.stream_stream_rpc_method_handler(
            self._connect, request_deserializer=read_from_engine, response_serializer=write
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = server.add_insecure_port(address)
        except RuntimeError as error:
            raise PeerError(f"cannot listen on {address} (coordinator): the port is in use") from error
        await server.start()
        self._server = server
        return int(bound)

    async def stop(self) -> None:
        """End all streams; engines go on without."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    # ------------------------------------------------------------------ a stream

    async def _connect(self, _requests: object, context: Any) -> None:  # noqa: ANN401 - grpcio says no types
        if not self._may_enter(context):
            self._meter.misunderstood("key")
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the coordinator's key is missing or wrong")
        link = await self._joined(context)
        say(logging.INFO, "engine linked", worker=link.worker.name)
        tasks: list[asyncio.Task[None]] = []
        try:
            await context.write(wire.ToEngine(welcome=wire.Welcome(report_every_s=self._engines.report_every_s)))
            tasks += (
                asyncio.create_task(self._read_on(link, context)),
                asyncio.create_task(_write_on(link, context)),
            )
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._engines.left(link)
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            why = "; ".join(repr(end) for end in ends if isinstance(end, Exception))
            say(logging.WARNING if why else logging.INFO, "engine's link is gone", worker=link.worker.name, why=why)

    def _may_enter(self, context: Any) -> bool:  # noqa: ANN401 - same
        if not self._key:
            return True
        given = [value for name, value in context.invocation_metadata() or () if name == KEY_HEADER]
        said = given[0] if len(given) == 1 and isinstance(given[0], str) else ""
        return hmac.compare_digest(said.encode(), f"Bearer {self._key}".encode())

    async def _joined(self, context: Any) -> EngineLink:  # noqa: ANN401 - same
        why = "the first message must be a hello"
        try:
            async with asyncio.timeout(_HELLO_S):
                first = await context.read()
            if isinstance(first, wire.FromEngine) and first.HasField("hello"):
                return self._engines.joined(first.hello)
        except TimeoutError:
            why = f"no hello came within {_HELLO_S:g} s"
        except UsageError as error:
            why = str(error)
        self._meter.misunderstood("hello")
        say(logging.WARNING, "engine refused", why=why)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)
        raise AssertionError  # abort raises

    async def _read_on(self, link: EngineLink, context: Any) -> None:  # noqa: ANN401 - same
        while not link.is_over:
            message = await context.read()
            if not isinstance(message, wire.FromEngine):
                return
            await self._engines.heard(link, message)


async def _write_on(link: EngineLink, context: Any) -> None:  # noqa: ANN401 - same
    while not link.is_over:
        await link.ready.wait()
        while link.waiting:
            await context.write(wire.ToEngine(directive=link.waiting.popleft()))
        if not link.is_over:
            link.ready.clear()
