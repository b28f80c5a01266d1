"""vLLM's KV events: which sessions' blocks an engine stored and removed, where it publishes them.

An engine connects to a tcp endpoint without a wildcard, so the subscriber *binds* (vLLM 0.32, `--kv-events-config`
with `"publisher": "zmq"`). A message has three frames: topic, sequence number (8 bytes, big endian), and a msgpack
batch of events: maps with a `type` in current versions, arrays that begin with their type in older ones. Token ids are
left undecoded: they are the bulk of it. Only blocks that are labelled with a `session_id` say anything here; tokens of
a session are counted as its blocks. A gap in the sequence empties what is known of that engine. pyzmq is an extra: its
absence is a clear error.

It refuses to know the scheduler: what it learns goes to whoever asked, as `BlocksStored` and `BlocksRemoved`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from saga import events as ev
from saga.errors import UsageError

if TYPE_CHECKING:
    import zmq.asyncio

_MAX_BLOCKS = 1_000_000
_DEVICE = frozenset({"", "gpu", "device", "cpu_device"})


class _Batch(msgspec.Struct):
    """Events that an engine published together."""

    ts: float
    events: list[msgspec.Raw]


class _Stored(msgspec.Struct, tag="BlockStored"):
    """Blocks that are now in a medium. What is not named here is skipped undecoded."""

    block_hashes: list[msgspec.Raw]
    block_size: int
    medium: str | None = None
    session_id: str | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved"):
    """Hashes that are gone from a medium."""

    block_hashes: list[msgspec.Raw]
    medium: str | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    """Everything is gone."""


class _OldBatch(msgspec.Struct, array_like=True):
    """[ts, events, rank]."""

    ts: float
    events: list[msgspec.Raw]


class _OldStored(msgspec.Struct, array_like=True, tag="BlockStored"):
    """Fields in the order of older engines; the last ones may be absent."""

    block_hashes: list[msgspec.Raw]
    parent_block_hash: msgspec.Raw
    token_ids: msgspec.Raw
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: msgspec.Raw = msgspec.Raw(b"\xc0")
    session_id: str | None = None


class _OldRemoved(msgspec.Struct, array_like=True, tag="BlockRemoved"):
    """[type, hashes, medium]."""

    block_hashes: list[msgspec.Raw]
    medium: str | None = None


class _OldCleared(msgspec.Struct, array_like=True, tag="AllBlocksCleared"):
    """[type]."""


_batch = msgspec.msgpack.Decoder(_Batch)
_event = msgspec.msgpack.Decoder(_Stored | _Removed | _Cleared)
_old_batch = msgspec.msgpack.Decoder(_OldBatch)
_old_event = msgspec.msgpack.Decoder(_OldStored | _OldRemoved | _OldCleared)


def _is_array(packed: bytes | msgspec.Raw) -> bool:
    first = memoryview(packed)[0]
    return 0x90 <= first <= 0x9F or first in {0xDC, 0xDD}


class SessionBlocks:
    """Blocks of one engine by session. Bounded: beyond `max_blocks` the oldest are forgotten. O(blocks of an event)."""

    def __init__(self, worker: str, max_blocks: int = _MAX_BLOCKS) -> None:
        self.worker = worker
        self._max_blocks = max_blocks
        self._owner: OrderedDict[tuple[bool, bytes], tuple[str, int]] = OrderedDict()
        self._tokens: dict[str, list[int]] = {}
        self._next_sequence: int | None = None

    def take(self, sequence: int, payload: bytes, at_s: float) -> list[ev.BlocksStored | ev.BlocksRemoved]:
        """What a message says. Raises msgspec.MsgspecError where it cannot be read. O(its blocks)."""
        changed: dict[str, bool] = {}
        if self._next_sequence is not None and sequence != self._next_sequence:
            self._clear(changed)
        self._next_sequence = sequence + 1
        batch = _old_batch.decode(payload) if _is_array(payload) else _batch.decode(payload)
        for raw in batch.events:
            try:
                event = _old_event.decode(raw) if _is_array(raw) else _event.decode(raw)
            except msgspec.ValidationError:
                continue  # a kind of event, or a form of one, that this version does not know
            if isinstance(event, _Stored | _OldStored):
                self._store(event, changed)
            elif isinstance(event, _Removed | _OldRemoved):
                self._remove(event, changed)
            else:
                self._clear(changed)
        return [self._say(session, at_s, grew=grew) for session, grew in changed.items()]

    def _store(self, event: _Stored | _OldStored, changed: dict[str, bool]) -> None:
        session = event.session_id
        if not session:
            return
        on_device = (event.medium or "").lower() in _DEVICE
        for raw in event.block_hashes:
            key = (on_device, bytes(raw))
            if key not in self._owner:
                self._owner[key] = (session, event.block_size)
                self._tokens.setdefault(session, [0, 0])[not on_device] += event.block_size
                changed[session] = True
        while len(self._owner) > self._max_blocks:
            self._forget(next(iter(self._owner)), changed)

    def _remove(self, event: _Removed | _OldRemoved, changed: dict[str, bool]) -> None:
        on_device = (event.medium or "").lower() in _DEVICE
        for raw in event.block_hashes:
            key = (on_device, bytes(raw))
            if key in self._owner:
                self._forget(key, changed)

    def _forget(self, key: tuple[bool, bytes], changed: dict[str, bool]) -> None:
        session, size = self._owner.pop(key)
        self._tokens[session][not key[0]] -= size
        changed[session] = False

    def _clear(self, changed: dict[str, bool]) -> None:
        for session in self._tokens:
            changed[session] = False
        self._owner.clear()
        self._tokens = {session: [0, 0] for session in self._tokens}

    def _say(self, session: str, at_s: float, *, grew: bool) -> ev.BlocksStored | ev.BlocksRemoved:
        device_tokens, host_tokens = self._tokens.get(session, [0, 0])
        if not device_tokens and not host_tokens:
            self._tokens.pop(session, None)
        kind = ev.BlocksStored if grew else ev.BlocksRemoved
        return kind(at_s, self.worker, session, device_tokens, host_tokens)


class KvEvents:
    """A subscriber for one engine, bound to `endpoint` (e.g. tcp://127.0.0.1:5557). Raises UsageError without pyzmq."""

    def __init__(self, worker: str, endpoint: str, tell: Callable[[ev.BlocksStored | ev.BlocksRemoved], None]) -> None:
        self._blocks = SessionBlocks(worker)
        self._tell = tell
        self._socket = _bind(endpoint)
        self._task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._listen())
        self.num_messages = 0
        self.num_unreadable = 0

    async def close(self) -> None:
        """Listen no longer."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close(linger=0)

    async def _listen(self) -> None:
        while True:
            frames: list[Any] = await self._socket.recv_multipart()
            self.num_messages += 1
            if len(frames) != 3:
                self.num_unreadable += 1
                continue
            at_s = asyncio.get_running_loop().time()
            try:
                events = self._blocks.take(int.from_bytes(frames[1], "big"), frames[2], at_s)
            except msgspec.MsgspecError:
                self.num_unreadable += 1
                continue
            for event in events:
                self._tell(event)


def _bind(endpoint: str) -> zmq.asyncio.Socket:
    try:
        import zmq  # noqa: PLC0415 - an extra
        import zmq.asyncio  # noqa: PLC0415
    except ImportError:
        raise UsageError("kv_events needs pyzmq: pip install 'saga-sched[kv-events]'") from None
    socket = zmq.asyncio.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.setsockopt(zmq.RCVHWM, 10_000)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise UsageError(f"kv_events {endpoint!r}: cannot listen there: {error}") from error
    return socket
