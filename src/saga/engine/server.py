"""`saga engine`: the modelled engine behind vLLM's endpoints, in (scaled) real time.

    request ── dialects ──▶ Ask ── prompt_index ──▶ streams ── realtime ──▶ ModelledEngine
    answers.compose (filler words, scripted tools) ── as its tokens come ── dialects ──▶ bytes

A prompt's tokens are its bytes / 4, its answer has exactly 4 bytes a token, and what is cached follows from the bytes.
It behaves like vLLM 0.32 in what clients and routers see: fields, usage, errors, metric names, an aborted call when the
client leaves. It refuses to know models: the words mean nothing, and sampling fields are ignored.
"""

from __future__ import annotations

import base64
import struct
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
from aiohttp import web

from saga import __version__
from saga.cache.prefix_lru import PrefixLru
from saga.engine.answers import NEVER, Answer, Caller, compose, render_answer
from saga.engine.batching import ModelledEngine
from saga.engine.calls import EngineRequest, EngineSettings
from saga.engine.dialects import (
    Ask,
    Chat,
    Completions,
    Dialect,
    Invalid,
    JsonObject,
    Messages,
    Reply,
    Responses,
    Turn,
    Usage,
)
from saga.engine.exposition import Exposition
from saga.engine.filler import BYTES_PER_TOKEN
from saga.engine.hardware import Hardware
from saga.engine.latency import Latency, LatencyModel
from saga.engine.prompt_index import Placed, PromptIndex
from saga.engine.realtime import LiveCall, RealTime
from saga.errors import PeerError, UsageError

MAX_BODY_BYTES = 64 * 2**20
_MAX_STORED = 10_000
_LEAST_INDEX_BLOCKS = 65_536
_EMBEDDING_SIZE = 64
_SSE = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
_encode = msgspec.json.encode


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """One server. kv_tokens, dram_tokens: None for the hardware's own; dram 0 for no host tier.

    speed: engine seconds per real second. caller: which tools answers call. max_model_len: prompt + answer, tokens,
    None for what the KV memory holds. step_s: real seconds between two chunks of a stream, at least.
    """

    hardware: Hardware
    model: str = ""
    speed: float = 1.0
    kv_tokens: int | None = None
    dram_tokens: int | None = 0
    block_tokens: int = 16
    max_running: int = 256
    chunk_tokens: int = 2048
    queue: str = "fcfs"
    caller: Caller = NEVER
    max_model_len: int | None = None
    step_s: float = 0.02
    latency: Latency | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises UsageError."""
        if not 0 < self.speed < 1e6:
            raise UsageError(f"speed = {self.speed} must be above 0 and below 1,000,000")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise UsageError(f"max_model_len = {self.max_model_len} must be at least 2")

    def engine(self) -> EngineSettings:
        """What the modelled engine is told. Raises UsageError."""
        machine = self.hardware
        return EngineSettings(
            kv_tokens=machine.kv_tokens if self.kv_tokens is None else self.kv_tokens,
            block_tokens=self.block_tokens,
            max_running=self.max_running,
            chunk_tokens=self.chunk_tokens,
            queue=self.queue,
            eviction=PrefixLru(),
            host_kv_tokens=machine.host_kv_tokens if self.dram_tokens is None else self.dram_tokens,
            load_tokens_per_s=machine.load_tokens_per_s,
        )


class EngineServer:
    """`await start()`, then `url` answers until `await close()`. One event loop, one engine."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.model = settings.model or settings.hardware.name
        self.engine = ModelledEngine(settings.engine(), settings.latency or LatencyModel(settings.hardware))
        self.url = ""
        of_engine = self.engine.settings
        self.max_model_len = min(settings.max_model_len or of_engine.kv_tokens, of_engine.kv_tokens)
        blocks = (of_engine.kv_tokens + of_engine.host_kv_tokens) // of_engine.block_tokens
        self._index = PromptIndex(of_engine.block_tokens, max(_LEAST_INDEX_BLOCKS, 4 * blocks))
        self._exposition = Exposition(self.engine, self.model, settings.speed)
        self._stored: OrderedDict[str, list[Turn]] = OrderedDict()
        self._created = int(time.time())
        self._num_steps = 0
        self._reasons: dict[str, str] = {}
        self._real: RealTime | None = None
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; the URL, with the port that was found where 0 was asked for. Raises PeerError where it is taken."""
        self._real = RealTime(
            self.engine, speed=self.settings.speed, step_s=self.settings.step_s, on_end=self._left_engine
        )
        self._runner = web.AppRunner(self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.close()
            raise PeerError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        bound_host, bound_port = self._runner.addresses[0][:2]
        self.url = f"http://[{bound_host}]:{bound_port}" if ":" in bound_host else f"http://{bound_host}:{bound_port}"
        return self.url

    async def close(self) -> None:
        """Stop listening; calls under way are cut off."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._real is not None:
            self._real.close()
            self._real = None

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_json])
        for path, dialect in _ROUTES.items():
            app.router.add_post(path, self._answering(dialect))
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ping", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        return app

    # Answers

    def _answering(self, dialect: Dialect) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._generate(request, dialect)

        return handle

    async def _generate(self, request: web.Request, dialect: Dialect) -> web.StreamResponse:
        """One call, from its bytes to the last byte of its answer."""
        ask = dialect.parse(await _json_object(request), self._recall)
        self._check_model(ask.model)
        _read_headers(request, ask)
        placed = self._index.place(f"{self.model}\0{ask.cache_salt}".encode("utf-8", "surrogatepass"), ask.prompt)
        finished = False
        try:
            answer = compose(ask.wanted, placed.digest, self.settings.caller, self._room(ask, placed.prompt_tokens))
            reply = self._reply(dialect, request, ask, answer)
            call = self._submit(reply, placed)
            try:
                if ask.stream:
                    response = await self._stream(request, dialect, reply, call, placed)
                else:
                    await call.finished()
                    self._finish(reply, call, placed)
                    response = web.Response(body=_encode(dialect.unary(reply)), content_type="application/json")
                finished = True
            finally:
                if not call.done:
                    self._real_time().cancel(call)
            return response
        finally:
            if not finished:
                self._index.abandoned(placed)

    def _reply(self, dialect: Dialect, request: web.Request, ask: Ask, answer: Answer) -> Reply:
        name = request.headers.get("X-Request-Id") or uuid.uuid4().hex
        call_ids = tuple(f"call_{uuid.uuid4().hex[:24]}" for _ in answer.calls)
        reply_id = dialect.prefix + name
        return Reply(reply_id, self.model, int(time.time()), ask, answer, Usage(0, 0, 0), call_ids)

    def _room(self, ask: Ask, prompt_tokens: int) -> int:
        """Tokens that the answer may have. Raises Invalid where the context is too long."""
        most, wanted = self.max_model_len, ask.wanted.max_tokens or 1
        if prompt_tokens + wanted > most:
            raise Invalid(
                f"This model's maximum context length is {most} tokens. However, you requested "
                f"{prompt_tokens + wanted} tokens ({prompt_tokens} in the messages, {wanted} in the completion). "
                "Please reduce the length of the messages or completion.",
                param="input_tokens",
            )
        return most - prompt_tokens

    def _submit(self, reply: Reply, placed: Placed) -> LiveCall:
        self._num_steps += 1
        step = f"{self._num_steps}"
        request = EngineRequest(
            step,
            reply.ask.session or f"-{step}",
            placed.path,
            placed.prompt_tokens,
            reply.answer.output_tokens,
            reply.ask.priority,
        )
        reason = reply.answer.finish_reason
        self._reasons[step] = "stop" if reason == "tool_calls" else reason
        try:
            return self._real_time().submit(request, streaming=reply.ask.stream)
        except UsageError as error:
            del self._reasons[step]
            raise Invalid(str(error)) from error

    def _left_engine(self, request: EngineRequest) -> None:
        reason = self._reasons.pop(request.step, "abort")
        self._exposition.count(request, reason if _has_finished(request) else "abort")

    def _finish(self, reply: Reply, call: LiveCall, placed: Placed) -> None:
        """The engine is done: usage is known, and what is cached of the answer. Raises Invalid where it closed."""
        request, answer = call.request, reply.answer
        if not _has_finished(request):
            raise Invalid("the engine is shutting down", status=503, kind="ServiceUnavailableError")
        self._index.answered(placed, render_answer(answer.text, answer.calls))
        reply.usage = self._usage_of(request, request.output_tokens)
        if reply.id.startswith("resp_"):
            turn = Turn("assistant", answer.text, answer.calls)
            self._stored[reply.id] = [*reply.ask.turns, turn]
            if len(self._stored) > _MAX_STORED:
                self._stored.popitem(last=False)

    def _usage_of(self, request: EngineRequest, output_tokens: int) -> Usage:
        cached = request.cached_tokens + request.host_tokens + request.moved_tokens
        return Usage(request.prompt_tokens, output_tokens, cached)

    async def _stream(
        self, request: web.Request, dialect: Dialect, reply: Reply, call: LiveCall, placed: Placed
    ) -> web.StreamResponse:
        """Server-sent events; the headers go out at once, as vLLM's do."""
        response = web.StreamResponse(headers=_SSE)
        response.enable_chunked_encoding()
        await response.prepare(request)
        seen, done = 0, False
        while not done:
            tokens = await call.more(seen)
            done = call.done
            reply.usage = self._usage_of(call.request, tokens)
            try:
                if done:
                    self._finish(reply, call, placed)
            except Invalid as error:
                await response.write(b"data: " + _encode(error.body()) + b"\n\ndata: [DONE]\n\n")
                break
            await response.write(_events(dialect, reply, seen, tokens, done=done))
            seen = tokens
        await response.write_eof()
        return response

    def _recall(self, response_id: str) -> list[Turn]:
        try:
            return self._stored[response_id]
        except KeyError:
            message = f"Response with id '{response_id}' not found."
            raise Invalid(message, status=404, kind="NotFoundError", param="previous_response_id") from None

    def _real_time(self) -> RealTime:
        if self._real is None:
            raise Invalid("the engine is shutting down", status=503, kind="ServiceUnavailableError")
        return self._real

    def _check_model(self, model: str | None) -> None:
        if model is not None and model != self.model:
            raise Invalid(f"The model `{model}` does not exist.", status=404, kind="NotFoundError", param="model")

    # The other routes

    async def _models(self, request: web.Request) -> web.Response:
        card = {
            "id": self.model,
            "object": "model",
            "created": self._created,
            "owned_by": "saga",
            "root": self.model,
            "parent": None,
            "max_model_len": self.max_model_len,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _embeddings(self, request: web.Request) -> web.Response:
        """Vectors that depend on the text alone; they take no time."""
        body = await _json_object(request)
        self._check_model(body.get("model"))
        given = body.get("input")
        texts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
        if not given or not all(isinstance(text, str | list) for text in texts):
            raise Invalid("input must be a string, or a list of strings or of token ids", param="input")
        packed = body.get("encoding_format") == "base64"
        data = [
            {"index": index, "object": "embedding", "embedding": _embedding(text, packed=packed)}
            for index, text in enumerate(texts)
        ]
        tokens = sum(_num_tokens(text) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "model": self.model, "data": data, "usage": usage})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await _json_object(request)
        dialect: Dialect = _ROUTES["/v1/chat/completions" if "messages" in body else "/v1/completions"]
        prompt = dialect.parse(body, self._recall).prompt
        whole = prompt + b" " * (-len(prompt) % BYTES_PER_TOKEN)
        tokens = list(struct.unpack(f"<{len(whole) // BYTES_PER_TOKEN}I", whole))
        return web.json_response({"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": f"saga-{__version__}"})

    async def _metrics(self, request: web.Request) -> web.Response:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._exposition.text(), headers=headers)


_ROUTES: dict[str, Any] = {
    "/v1/chat/completions": Chat(),
    "/v1/completions": Completions(),
    "/v1/responses": Responses(),
    "/v1/messages": Messages(),
}


def _has_finished(request: EngineRequest) -> bool:
    return request.finished_s == request.finished_s  # nan where it was aborted


def _events(dialect: Dialect, reply: Reply, seen: int, tokens: int, *, done: bool) -> bytes:
    """The events of tokens `seen` to `tokens` of the answer."""
    events: list[bytes] = []
    if not seen and tokens:
        events += dialect.begin(reply)
    end = 1 << 60 if done else tokens * BYTES_PER_TOKEN
    for piece in reply.answer.pieces(seen * BYTES_PER_TOKEN, end):
        events += dialect.piece(reply, piece)
    if done:
        events += dialect.end(reply)
    return b"".join(events)


async def _json_object(request: web.Request) -> JsonObject:
    try:
        body = msgspec.json.decode(await request.read())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Invalid(f"the body must be a JSON object, not {type(body).__name__}")
    return body


def _read_headers(request: web.Request, ask: Ask) -> None:
    """What vLLM reads from headers where the body does not say it."""
    ask.session = ask.session or request.headers.get("X-Session-ID", "")
    priority = request.headers.get("X-Vllm-Priority")
    if priority is not None and not ask.priority:
        try:
            ask.priority = int(priority)
        except ValueError:
            raise Invalid(f"X-Vllm-Priority must be a whole number, not {priority[:40]!r}") from None


def _embedding(text: object, *, packed: bool) -> list[float] | str:
    rng = Random(str(text))
    values = [rng.uniform(-1, 1) for _ in range(_EMBEDDING_SIZE)]
    return base64.b64encode(struct.pack(f"<{_EMBEDDING_SIZE}f", *values)).decode() if packed else values


def _num_tokens(text: object) -> int:
    return max(1, len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN) if isinstance(text, str) else 1


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Errors in vLLM's shape, also those of aiohttp itself."""
    try:
        return await handler(request)
    except Invalid as error:
        return web.json_response(error.body(), status=error.status)
    except web.HTTPException as error:
        body = Invalid(error.reason, status=error.status, kind=error.reason.replace(" ", "") + "Error").body()
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return web.json_response(body, status=error.status, headers=allowed)
