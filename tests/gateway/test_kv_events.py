"""Tests of reading vLLM's KV events."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from saga import events as ev
from saga.gateway.kv_events import KvEvents, SessionBlocks

pack = msgspec.msgpack.encode


def stored(session, *hashes, medium="GPU", size=16):
    """An event as current engines send it."""
    return {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": None,
        "token_ids": list(range(size * len(hashes))),
        "block_size": size,
        "lora_id": None,
        "medium": medium,
        "lora_name": None,
        "session_id": session,
    }


def batch(*events):
    """A batch as current engines send it."""
    return pack({"ts": 1.0, "events": list(events), "data_parallel_rank": 0})


def test_blocks_are_counted_by_session_and_medium():
    """Stored blocks add up, removed ones go; unlabelled blocks say nothing."""
    blocks = SessionBlocks("w")
    assert blocks.take(0, batch(stored("s", 1, 2, 3), stored(None, 9)), 5.0) == [ev.BlocksStored(5.0, "w", "s", 48, 0)]
    assert blocks.take(1, batch(stored("s", b"h1", medium="CPU")), 6.0) == [ev.BlocksStored(6.0, "w", "s", 48, 16)]
    removed = {"type": "BlockRemoved", "block_hashes": [2, 3, 9], "medium": "GPU"}
    assert blocks.take(2, batch(removed), 7.0) == [ev.BlocksRemoved(7.0, "w", "s", 16, 16)]
    assert blocks.take(3, batch({"type": "AllBlocksCleared"}), 8.0) == [ev.BlocksRemoved(8.0, "w", "s", 0, 0)]


def test_the_same_block_twice_counts_once():
    """A block that is stored again is still one block."""
    blocks = SessionBlocks("w")
    blocks.take(0, batch(stored("s", 1)), 1.0)
    assert blocks.take(1, batch(stored("s", 1)), 2.0) == []


def test_arrays_of_older_engines_are_read():
    """[type, hashes, parent, tokens, size, lora, medium, lora name, extra keys, session]."""
    old = ["BlockStored", [1, 2], None, [0] * 32, 16, None, "GPU", None, None, "s"]
    assert SessionBlocks("w").take(0, pack([1.0, [old], 0]), 1.0) == [ev.BlocksStored(1.0, "w", "s", 32, 0)]
    gone = pack([1.0, [["BlockRemoved", [1], "GPU"], ["AllBlocksCleared"]]])
    assert SessionBlocks("w").take(0, gone, 1.0) == []


def test_a_gap_in_the_sequence_empties_what_is_known():
    """After a lost message nothing is believed that was not said since."""
    blocks = SessionBlocks("w")
    blocks.take(0, batch(stored("s", 1, 2)), 1.0)
    assert blocks.take(2, batch(stored("t", 3)), 2.0) == [
        ev.BlocksRemoved(2.0, "w", "s", 0, 0),
        ev.BlocksStored(2.0, "w", "t", 16, 0),
    ]


def test_an_unknown_event_is_skipped_and_rubbish_is_an_error():
    """New kinds of events do not stop the old ones."""
    blocks = SessionBlocks("w")
    assert blocks.take(0, batch({"type": "BlockDreamt"}, stored("s", 1)), 1.0) == [
        ev.BlocksStored(1.0, "w", "s", 16, 0)
    ]
    with pytest.raises(msgspec.MsgspecError):
        blocks.take(1, b"\xc1", 1.0)


def test_what_is_remembered_is_bounded():
    """Beyond the cap the oldest blocks are forgotten."""
    blocks = SessionBlocks("w", max_blocks=4)
    for i in range(100):
        blocks.take(i, batch(stored(f"s{i}", i)), 1.0)
    assert (len(blocks._owner), len(blocks._tokens)) == (4, 4)


def test_a_subscriber_hears_an_engine_that_connects():
    """The subscriber binds, the publisher connects; rubbish is counted and survived."""
    pytest.importorskip("zmq")
    import zmq.asyncio

    async def scene():
        heard = []
        subscriber = KvEvents("w", "inproc://kv-events-test", heard.append)
        publisher = zmq.asyncio.Context.instance().socket(zmq.PUB)
        publisher.connect("inproc://kv-events-test")
        async with asyncio.timeout(5.0):
            sequence = 0
            while not heard:
                await publisher.send_multipart([b"", (7).to_bytes(8, "big"), b"\xc1"])
                await publisher.send_multipart([b"", sequence.to_bytes(8, "big"), batch(stored("s", sequence))])
                sequence += 1
                await asyncio.sleep(0.01)
        assert heard[0].session == "s"
        await subscriber.close()
        publisher.close(linger=0)

    asyncio.run(scene())
