"""The offline optimum of a prefix cache: what to keep if every next use is known (Belady's MIN).

Between two uses a block either *stays* in the cache the whole time, or it is computed again at the second use: to
keep it for a part of the time is worth nothing. So the question is which stays to grant, when at each *slot* (the
moment at which a call takes its room) only so many blocks are free beside what calls in flight hold. All blocks of a
run that were used and will be used together are one stay.

Theorem. For unit blocks of equal cost, granting stays in time order and, where there are too many, giving up those
that end farthest away, loses the fewest blocks. Proof: at the first overfull slot some stay that covers it must go;
of those, one that ends farthest covers all later slots that any other would have covered, so exchanging it for
another never breaks a later slot. It also respects prefixes, although nobody asks for that: whoever uses a block uses
all blocks before it, so what lies deeper is used no sooner, and where they tie the deepest goes first; shared
prefixes need no rule of their own. One exception: a block that an *answer* is about to write again need not be kept
for that, while what lies behind it is worth keeping; a cache that evicts leaves only must keep both or lose both, and
for it the optimum is a lower bound. It is *not* optimal where blocks differ in cost, as in device seconds, which grow
with depth: see `sim.cache_bound`.

Refuses to know where the stays come from (`sim.cache_stays`), what a policy could know, and costs.
Source: Belady 1966; Carlisle and Lloyd 1995 (k-colourable intervals) for capacities.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple


class Stay(NamedTuple):
    """A run of blocks between two uses.

    begins: first slot at which it would need room; ends: slot of the next use, at which it needs none of its own (a
    stay with ends <= begins needs none at all). block: depth of its first block; blocks: how many.
    """

    begins: int
    ends: int
    block: int
    blocks: int


def kept_blocks(stays: Sequence[Stay], room: Sequence[int]) -> list[int]:
    """How many blocks of each stay the optimum keeps, the leading ones of its run.

    stays: in the order of `begins`. room: by slot, blocks free for stays, none negative. O(stays log stays).
    """
    kept = [stay.blocks for stay in stays]
    due = [0] * (len(room) + 1)
    heap: list[tuple[int, int, int]] = []
    total = place = 0
    for slot, free in enumerate(room):
        total -= due[slot]
        while place < len(stays) and stays[place].begins <= slot:
            _, ends, block, blocks = stays[place]
            if ends > slot:
                heappush(heap, (-ends, -block, place))
                due[ends] += blocks
                total += blocks
            place += 1
        while total > free:
            minus_ends, _, index = heap[0]
            gone = min(total - free, kept[index])
            kept[index] -= gone
            due[-minus_ends] -= gone
            total -= gone
            if not kept[index]:
                heappop(heap)
    return kept
