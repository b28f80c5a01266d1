"""The relay written the plain way, with aiohttp on both sides: the oracle of the front's differential test.

It answers what the front answers, byte for byte, as long as nothing is malformed or slow: the same identity, the same
scheduling, the same fields taken out and put in; a call that failed before its first byte is tried again. It is not
part of the data path (aiohttp costs four times as much) and refuses to know limits, routes and time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from saga.gateway.contracts import Answer, Call, Identity, Kind, Refused, Request, Scheduling, Ticket
from saga.gateway.relay import Watchers

_DROPPED = {
    "authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "cookie2",
    "host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade",
    "proxy-connection", "proxy-authenticate", "expect", "accept-encoding", "http2-settings",
}  # fmt: skip
_NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class Twin:
    """A gateway like `Front`, slow and simple. Needs the same three parts."""

    def __init__(self, identity: Identity, scheduling: Scheduling, watchers: Watchers) -> None:
        self._identity = identity
        self._scheduling = scheduling
        self._watchers = watchers
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns (host, port)."""
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=timeout)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        address = self._runner.addresses[0]
        return str(address[0]), int(address[1])

    async def close(self) -> None:
        """Stop."""
        if self._session is not None:
            await self._session.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, http: web.Request) -> web.StreamResponse:
        headers = [(name.lower(), value) for name, value in http.raw_headers]
        body = await http.read()
        path = http.raw_path.partition("?")[0]
        request = Request(http.method, http.raw_path, path, headers, body, http.remote or "")
        now_s = asyncio.get_running_loop().time
        try:
            call = self._identity.identify(request, now_s())
            ticket: Ticket | None = await self._scheduling.admit(call)
        except Refused as refused:
            return _refusal(refused)
        why = ""
        while ticket is not None:
            try:
                response, answer = await self._relay(http, call, ticket)
            except aiohttp.ClientError as error:
                why = str(error)
                ticket = await self._scheduling.failed(ticket, why, retry=call.retryable)
            else:
                self._scheduling.finished(ticket, answer)
                self._identity.answered(call, answer, now_s())
                return response
        return _refusal(Refused(502, why, kind="server_error", code="worker_unavailable"))

    async def _relay(self, http: web.Request, call: Call, ticket: Ticket) -> tuple[web.StreamResponse, Answer]:
        assert self._session is not None
        address = ticket.address
        scheme = "https" if address.tls else "http"
        url = URL(f"{scheme}://{address.host}:{address.port}{address.base_path}{call.request.target}", encoded=True)
        own = {name.decode().lower(): value.decode() for name, value in address.headers}
        sent = [(n, v) for n, v in _end_to_end(call.request.headers, _DROPPED) if n not in own] + list(own.items())
        async with self._session.request(
            http.method,
            url,
            headers=sent,
            data=_with_extra(call.body or call.request.body, ticket) or None,
            skip_auto_headers=_NOT_ADDED,
            allow_redirects=False,
        ) as upstream:
            raw = [(name.lower(), value) for name, value in upstream.raw_headers]
            watcher = self._watchers(call, upstream.status, raw)
            response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
            for name, value in _end_to_end(raw, {"content-length", "transfer-encoding", "connection", "keep-alive"}):
                response.headers.add(name, value)
            for name, text in _notes(ticket):
                response.headers[name] = text
            events = "text/event-stream" in upstream.headers.get("content-type", "")
            if upstream.content_length is not None and not events:
                response.content_length = upstream.content_length
            first = await upstream.content.readany()
            self._scheduling.first_byte(ticket)
            await response.prepare(http)
            hide = events and not call.wants_usage and call.stream and call.kind in {Kind.CHAT, Kind.COMPLETIONS}
            async for passed in _passed(first, upstream, watcher.feed, hide=hide):
                await response.write(passed)
            await response.write_eof()
            return response, watcher.close()


async def _passed(first: bytes, upstream: aiohttp.ClientResponse, feed: object, *, hide: bool) -> AsyncIterator[bytes]:
    """The bytes for the client; the usage chunk is looked for in whole events."""
    assert callable(feed)
    rest = b""
    data = first
    while data:
        feed(data)
        if hide:
            *events, rest = (rest + data).split(b"\n\n")
            data = b"".join(event + b"\n\n" for event in events if not _only_usage(event))
        if data:
            yield data
        data = await upstream.content.readany()
    if rest:
        yield rest


def _only_usage(event: bytes) -> bool:
    try:
        chunk = msgspec.json.decode(event.removeprefix(b"data:"))
    except msgspec.DecodeError:
        return False
    return isinstance(chunk, dict) and chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)


def _end_to_end(headers: list[tuple[bytes, bytes]], dropped: set[str]) -> list[tuple[str, str]]:
    fields = [(name.decode(), value.decode("utf-8", "surrogateescape")) for name, value in headers]
    named = {token.strip() for name, value in fields if name == "connection" for token in value.lower().split(",")}
    return [(name, value) for name, value in fields if name not in dropped and name not in named]


def _with_extra(body: bytes, ticket: Ticket) -> bytes:
    if not ticket.extra:
        return body
    return msgspec.json.encode({**msgspec.json.decode(body), **ticket.extra})


def _notes(ticket: Ticket) -> list[tuple[str, str]]:
    return [
        ("x-saga-session", ticket.call.session),
        ("x-saga-worker", ticket.address.worker),
        ("x-saga-queued-ms", str(int(ticket.queued_s * 1000))),
        ("x-saga-reason", ticket.reason),
    ]


def _refusal(refused: Refused) -> web.Response:
    error = {"message": refused.message, "type": refused.kind, "param": refused.param, "code": refused.code}
    return web.Response(
        status=refused.status, body=msgspec.json.encode({"error": error}), content_type="application/json"
    )
