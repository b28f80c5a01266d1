"""A lower bound on the cost of regeneration that no policy can pass, where blocks differ in cost.

A block deep in a context costs more device time than one at its beginning (attention), so the fewest tokens
(`cache.belady`) need not be the fewest seconds. Which stays to grant is then a packing of weighted intervals. This
module relaxes it in two ways: a run may be kept without what lies before it (no leaf-first order across runs; within
a run the leading blocks are kept, the cheaper ones, so a part of a run is worth at most its share), and blocks may be
kept in fractions. What is left is a flow problem on a line of slots, and by duality *any* prices >= 0 per slot and
block bound what can be saved:

    saved <= sum over slots of price x room + sum over stays of max(0, worth - blocks x prices of its slots).

The prices are improved by subgradient steps; however far they get, the bound holds. With equal costs the best prices
reach Belady's optimum exactly (an interval matrix is totally unimodular).

Refuses to know where stays and costs come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saga.cache.belady import Stay

_STEPS = 400
_PATIENCE = 12
_SHORTEST = 1e-3


def most_saved(stays: Sequence[Stay], worth: Sequence[float], room: Sequence[int], saved: float) -> float:
    """An upper bound on the worth of the stays that can be granted together.

    worth: of each whole stay; room: by slot, in blocks; saved: what some way of granting them is known to save.
    O(steps x (stays + slots)), all of it in numpy.
    """
    total = float(sum(worth))
    if not stays or not room:
        return total
    prices = _Prices(stays, worth, room)
    at = np.full(len(room), prices.best_flat())
    best, patience, stride = total, 0, 1.0
    for _ in range(_STEPS):
        value, slope = prices.saved(at)
        if value < best:
            patience = 0 if value < best - 1e-4 * (best - saved) else patience + 1
            best = value
        else:
            patience += 1
        if patience > _PATIENCE:
            stride, patience = stride / 2, 0
        slope[(at <= 0.0) & (slope > 0.0)] = 0.0
        norm = float((slope * slope).sum())  # no BLAS: its threads cost more than such sums
        if norm <= 0.0 or value <= saved or stride < _SHORTEST:
            break
        at = np.maximum(0.0, at - stride * (value - saved) / norm * slope)
    return max(best, saved)


class _Prices:
    """The dual function and its slope."""

    def __init__(self, stays: Sequence[Stay], worth: Sequence[float], room: Sequence[int]) -> None:
        table = np.asarray(stays, dtype=np.int64).reshape(-1, 4)
        self.begins = table[:, 0]
        self.ends = np.maximum(table[:, 1], table[:, 0])
        self.blocks = table[:, 3].astype(float)
        self.worth = np.asarray(worth, dtype=float)
        self.room = np.asarray(room, dtype=float)
        self.begins = np.minimum(self.begins, len(self.room))
        self.ends = np.minimum(self.ends, len(self.room))

    def saved(self, prices: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The bound at these prices, and its slope by price."""
        paid = np.concatenate(([0.0], np.cumsum(prices)))
        left = self.worth - self.blocks * (paid[self.ends] - paid[self.begins])
        granted = np.where(left > 0.0, self.blocks, 0.0)
        num_slots = len(self.room)
        change = np.bincount(self.begins, granted, num_slots + 1) - np.bincount(self.ends, granted, num_slots + 1)
        value = float(np.maximum(left, 0.0).sum() + (prices * self.room).sum())
        return value, self.room - np.cumsum(change)[:num_slots]

    def best_flat(self) -> float:
        """The best price that is the same for all slots; the bound is convex in it. O(60 x stays)."""
        slots = self.blocks * (self.ends - self.begins)
        rent = float(self.room.sum())

        def value(price: float) -> float:
            return float(np.maximum(self.worth - slots * price, 0.0).sum() + price * rent)

        low, high = 0.0, float(np.max(self.worth / np.maximum(slots, 1.0)))
        for _ in range(60):
            left, right = low + (high - low) / 3, high - (high - low) / 3
            if value(left) <= value(right):
                high = right
            else:
                low = left
        return (low + high) / 2
