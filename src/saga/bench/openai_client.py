"""One chat call to any OpenAI-compatible server, and how long it took.

It refuses to know workloads: it sends a body and reads an answer, streamed or not. Seconds are the clock's.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from saga.errors import PeerError, UsageError

_decode = msgspec.json.decode
_RETRY_STATUSES = (429, 503)
_MAX_RETRY_WAIT_S = 30.0


@dataclass(slots=True)
class Measured:
    """A call as its client saw it.

    start_s, ttft_s (None where nothing came), total_s: seconds, retries included. queued_s: in a gateway, by its
    header. prompt_tokens, output_tokens, cached_tokens: by `usage`, None where it is silent. error: kind, "" for none.
    """

    tenant: str
    start_s: float
    ttft_s: float | None = None
    total_s: float = 0.0
    queued_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    worker: str = ""
    error: str = ""
    detail: str = ""
    retries: int = 0
    text: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


class OpenAiClient:
    """Talks to one base URL; made inside an event loop. Raises UsageError where the URL is none."""

    def __init__(self, url: str, *, timeout_s: float = 600.0, max_retries: int = 2) -> None:
        self.url = base_url(url)
        self._max_retries = max_retries
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=10.0)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def models(self, headers: dict[str, str]) -> list[str]:
        """Names of the models served. Raises PeerError where nobody listens or the answer is not OpenAI's."""
        where = f"{self.url}/models"
        try:
            async with self._http.get(where, headers=headers, timeout=aiohttp.ClientTimeout(total=10.0)) as response:
                body = await response.read()
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise PeerError(f"{self.url}: no answer: {_why(error)}") from error
        if status in (401, 403):
            raise PeerError(f"{self.url}: wants an API key (HTTP {status}); give it with --tenant-keys")
        try:
            return [str(card["id"]) for card in _decode(body)["data"]]
        except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError):
            shown = body[:60].decode(errors="replace")
            raise PeerError(
                f"{self.url}: not an OpenAI-compatible server: GET {where} gave HTTP {status} and {shown!r}"
            ) from None

    async def chat(self, body: dict[str, Any], headers: dict[str, str], tenant: str) -> Measured:
        """Ask; errors are in the answer. Busy servers (429, 503) and lost connections are asked again."""
        measured = Measured(tenant, time.perf_counter())
        while True:
            measured.error = measured.detail = measured.text = ""
            measured.tool_calls, measured.ttft_s = [], None
            wait_s = await self._attempt(body, headers, measured)
            if wait_s is None or measured.retries >= self._max_retries:
                measured.total_s = time.perf_counter() - measured.start_s
                return measured
            measured.retries += 1
            await asyncio.sleep(wait_s)

    async def _attempt(self, body: dict[str, Any], headers: dict[str, str], measured: Measured) -> float | None:
        """One request; seconds after which it may be repeated, None where it is answered or hopeless."""
        data = msgspec.json.encode(body)
        headers = {"Content-Type": "application/json", **headers}
        try:
            async with self._http.post(f"{self.url}/chat/completions", data=data, headers=headers) as response:
                _read_headers(response, measured)
                if response.status != 200:
                    return await self._refused(response, measured)
                if response.content_type == "text/event-stream":
                    await _read_stream(response, measured)
                else:
                    _read_whole(await response.read(), measured)
        except TimeoutError:
            measured.error = "timeout"
        except (aiohttp.ClientError, OSError) as error:
            measured.error, measured.detail = "connection", _why(error)
            return 0.1 * 2**measured.retries if measured.ttft_s is None else None
        return None

    async def _refused(self, response: aiohttp.ClientResponse, measured: Measured) -> float | None:
        text = (await response.read())[:300].decode(errors="replace")
        measured.error, measured.detail = f"http_{response.status}", text
        if response.status not in _RETRY_STATUSES:
            return None
        try:
            return min(_MAX_RETRY_WAIT_S, max(0.0, float(response.headers.get("Retry-After", "0.5"))))
        except ValueError:
            return 0.5


def base_url(url: str) -> str:
    """The URL with `/v1`, without a slash behind. Raises UsageError."""
    bare = url.rstrip("/")
    scheme, _, rest = bare.partition("://")
    if scheme not in ("http", "https") or not rest or rest.startswith("/"):
        raise UsageError(f"{url!r} is no URL of a server; right is e.g. http://127.0.0.1:8000")
    return bare if bare.endswith("/v1") else bare + "/v1"


def _why(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return os.strerror(number) if number else str(error.os_error)
    return str(error) or type(error).__name__


def _read_headers(response: aiohttp.ClientResponse, measured: Measured) -> None:
    measured.worker = response.headers.get("x-saga-worker", "")
    try:
        measured.queued_s = float(response.headers["x-saga-queued-ms"]) / 1e3
    except (LookupError, ValueError):
        measured.queued_s = None


async def _read_stream(response: aiohttp.ClientResponse, measured: Measured) -> None:
    """Server-sent events of a chat completion."""
    ended = False
    buffer = b""
    calls: dict[int, dict[str, Any]] = {}
    async for part in response.content.iter_any():
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                ended = True
            elif not _read_chunk(data, measured, calls):
                return
    measured.tool_calls = [calls[index] for index in sorted(calls)]
    if not ended:
        measured.error = "cut_stream"


def _read_chunk(data: bytes, measured: Measured, calls: dict[int, dict[str, Any]]) -> bool:
    """One event; False where it is an error."""
    try:
        chunk = _decode(data)
        if "error" in chunk:
            measured.error, measured.detail = "stream_error", data[:300].decode(errors="replace")
            return False
        _read_usage(chunk.get("usage"), measured)
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {}
            text = delta.get("content") or ""
            if measured.ttft_s is None and (text or delta.get("tool_calls")):
                measured.ttft_s = time.perf_counter() - measured.start_s
            measured.text += text
            for call in delta.get("tool_calls") or ():
                _merge_call(calls, call)
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        measured.error, measured.detail = "not_openai", data[:300].decode(errors="replace")
        return False
    return True


def _merge_call(calls: dict[int, dict[str, Any]], part: dict[str, Any]) -> None:
    empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    call = calls.setdefault(part.get("index", 0), empty)
    call["id"] = part.get("id") or call["id"]
    function = part.get("function") or {}
    call["function"]["name"] = function.get("name") or call["function"]["name"]
    call["function"]["arguments"] += function.get("arguments") or ""


def _read_whole(data: bytes, measured: Measured) -> None:
    """A chat completion in one piece."""
    try:
        body = _decode(data)
        message = body["choices"][0]["message"]
        measured.text = message.get("content") or ""
        measured.tool_calls = list(message.get("tool_calls") or ())
        _read_usage(body.get("usage"), measured)
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        measured.error, measured.detail = "not_openai", data[:300].decode(errors="replace")


def _read_usage(usage: dict[str, Any] | None, measured: Measured) -> None:
    if usage:
        measured.prompt_tokens = usage.get("prompt_tokens")
        measured.output_tokens = usage.get("completion_tokens")
        measured.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
