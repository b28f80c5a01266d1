"""Any OpenAI-compatible server as an engine to be probed: prompts of random words, answers streamed, times noted.

vLLM is asked for usage in every chunk, so that tokens are counted as it counts them; elsewhere a chunk with words is a
token. KV memory, running calls and version come from `/metrics` and `/version` where they are shown. It refuses to know
which probes are made (`saga.engine.probes`).
"""

from __future__ import annotations

import asyncio
import re
import time
from random import Random
from typing import Any

import aiohttp
import msgspec

from saga.bench.openai_client import OpenAiClient
from saga.engine.probes import Answering, Prompt
from saga.errors import PeerError, UsageError

_SAMPLE = re.compile(r"^vllm:(\w+)(?:\{(.*)\})? ([0-9.eE+-]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_WORD_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SETTLED_WITHIN_S = 2.0
_LOOK_S = 0.02
_FEW_WORDS, _MANY_WORDS = 40, 200
_DEFAULT_BLOCK_TOKENS = 16


class ProbedUrl:
    """One server; see `ProbedEngine`. Made inside an event loop; `await open()` first."""

    waits = 0.5

    def __init__(self, url: str, *, model: str, key: str, chunk_tokens: int, timeout_s: float = 120.0) -> None:
        self._client = OpenAiClient(url)
        self.url = self._client.url
        self.model = model
        self.chunk_tokens = chunk_tokens
        self.max_context_tokens = 0
        self.kv_tokens = 0
        self.block_tokens = _DEFAULT_BLOCK_TOKENS
        self.version = "unknown"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=10.0)
        self._http = aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(limit=0), headers=self._headers
        )
        self._root = self.url.removesuffix("/v1")
        self._tokens_per_word = 0.0
        self._extra_tokens = 0.0
        self._watched = True
        self._calls: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Give up what is under way and close all connections."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._http.close()
        await self._client.close()

    async def open(self) -> None:
        """Who serves what; how long its tokens are. Raises PeerError, UsageError for a model that is not served."""
        cards = await self._client.models(self._headers)
        if not self.model and not cards:
            raise UsageError(f"{self.url}: names no model; give one with --model")
        self.model = self.model or cards[0]
        if cards and self.model not in cards:
            raise UsageError(f"{self.url}: does not serve model {self.model!r} but {', '.join(cards)}")
        self.max_context_tokens = await self._max_model_len()
        self.version = await self._version()
        samples = await self._samples()
        self._watched = "num_requests_running" in samples
        for labels, _ in samples.get("cache_config_info", ()):
            try:
                self.block_tokens = int(labels["block_size"])
                self.kv_tokens += self.block_tokens * int(labels["num_gpu_blocks"])
            except (LookupError, ValueError):
                continue

    async def idle(self) -> bool:
        """See ProbedEngine; always True where the server shows no metrics."""
        await asyncio.gather(*self._calls, return_exceptions=True)
        until_s = time.perf_counter() + _SETTLED_WITHIN_S
        while self._watched and await self.num_under_way():
            if time.perf_counter() > until_s:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def num_under_way(self) -> int:
        """Calls in the engine, running and waiting, by its metrics."""
        samples = await self._samples()
        names = ("num_requests_running", "num_requests_waiting")
        return int(sum(value for name in names for _, value in samples.get(name, ())))

    def ask(self, prompt: Prompt, output_tokens: int) -> Answering:
        """See ProbedEngine."""
        words = []
        if prompt.shared_tokens:
            words += self._words(prompt.shared, prompt.shared_tokens)
        own = prompt.tokens if not words else prompt.tokens + round(self._extra_tokens)
        words += self._words(prompt.name, own)
        return self._ask(" ".join(words), output_tokens)

    def _words(self, name: int, tokens: int) -> list[str]:
        """So many tokens' worth of the words of this content, the template's own tokens deducted."""
        number = max(1, round((tokens - self._extra_tokens) / self._tokens_per_word))
        return _some_words(name, number)

    def _ask(self, text: str, output_tokens: int) -> Answering:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": output_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        data = msgspec.json.encode(body)

        def leave() -> None:
            task.cancel()

        call = Answering(time.perf_counter(), leave)
        task = asyncio.get_running_loop().create_task(self._run(call, data))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return call

    async def _run(self, call: Answering, data: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        try:
            async with self._http.post(f"{self.url}/chat/completions", data=data, headers=headers) as response:
                if response.status == 200:
                    async for line in response.content:
                        if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                            self._read(call, line[5:], time.perf_counter())
                    call.end()
                else:
                    said = (await response.read())[:300].decode(errors="replace")
                    call.end(PeerError(f"{self.url}: HTTP {response.status}: {said}"))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            call.end(PeerError(f"{self.url}: a call was cut off: {_why(error)}"))
        except PeerError as error:
            call.end(error)
        finally:
            call.done = True

    def _read(self, call: Answering, data: bytes, at_s: float) -> None:
        """One event of the stream. Raises PeerError where it is none of OpenAI's."""
        try:
            chunk = msgspec.json.decode(data)
            usage = chunk.get("usage") or {}
            tokens = usage.get("completion_tokens")
            if tokens is None:
                deltas = [choice.get("delta") or {} for choice in chunk["choices"]]
                spoke = any(text for delta in deltas for name, text in delta.items() if name != "role")
                tokens = (call.times[-1][1] if call.times else 0) + spoke
            elif "prompt_tokens" in usage:
                call.prompt_tokens = int(usage["prompt_tokens"])
            details = usage.get("prompt_tokens_details") or {}
            if details.get("cached_tokens") is not None:
                call.cached_tokens = int(details["cached_tokens"])
            call.note(at_s, int(tokens))
        except (msgspec.MsgspecError, LookupError, TypeError, ValueError, AttributeError):
            raise PeerError(f"{self.url}: not a chunk of an answer: {data[:120]!r}") from None

    async def prepare(self) -> None:
        """See ProbedEngine: two calls that tell the tokens of a word, and of what the server adds."""
        lengths = []
        for number in (_FEW_WORDS, _MANY_WORDS):
            call = self._ask(" ".join(_some_words(number, number)), 1)
            await call.last_s()
            if call.prompt_tokens is None:
                raise PeerError(f"{self.url}: its answers have no usage.prompt_tokens, without which nothing is known")
            lengths.append(call.prompt_tokens)
        self._tokens_per_word = max(0.1, (lengths[1] - lengths[0]) / (_MANY_WORDS - _FEW_WORDS))
        self._extra_tokens = max(0.0, lengths[0] - _FEW_WORDS * self._tokens_per_word)

    async def _max_model_len(self) -> int:
        """Of the model's card; 0 where it does not say."""
        cards = await self._json(f"{self.url}/models")
        found = [card for card in cards.get("data", ()) if card.get("id") == self.model]
        limit = found[0].get("max_model_len") if found else None
        return limit if isinstance(limit, int) else 0

    async def _version(self) -> str:
        try:
            return str((await self._json(f"{self._root}/version"))["version"])
        except (PeerError, LookupError):
            return "unknown"

    async def _samples(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """VLLM's metrics by name without prefix: labels and value; empty where there are none."""
        try:
            text = (await self._get(f"{self._root}/metrics")).decode(errors="replace")
        except PeerError:
            return {}
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for name, labels, value in _SAMPLE.findall(text):
            found.setdefault(name, []).append((dict(_LABEL.findall(labels)), float(value)))
        return found

    async def _json(self, url: str) -> dict[str, Any]:
        body = await self._get(url)
        try:
            return msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise PeerError(f"{url}: not JSON: {error}") from None

    async def _get(self, url: str) -> bytes:
        try:
            async with self._http.get(url, timeout=aiohttp.ClientTimeout(total=10.0)) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise PeerError(f"{url}: no answer: {_why(error)}") from error
        if response.status != 200:
            raise PeerError(f"{url}: HTTP {response.status}")
        return body


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _some_words(name: int, number: int) -> list[str]:
    """Words of the content of this name, always the same; more of them begin with the fewer ones."""
    random = Random(name)
    return ["".join(random.choices(_WORD_LETTERS, k=5)) for _ in range(number)]
