"""The two orders of waiting."""

from __future__ import annotations

from saga.engine.calls import EngineRequest
from saga.engine.queues import FcfsQueue, PriorityQueue, WaitingQueue


def request(step: str, priority: int = 0, arrival_s: float = 0.0, sequence: int = 0) -> EngineRequest:
    """A waiting call."""
    made = EngineRequest(step, step, ((0, 1),), 1, 1, priority)
    made.arrival_s, made.sequence = arrival_s, sequence
    return made


def drain(queue: WaitingQueue) -> list[str]:
    """Steps in the order in which they would be admitted."""
    order = []
    while len(queue):
        head = queue.head()
        queue.discard(head)
        order.append(head.step)
    return order


def test_first_come_first_served_with_returns_in_front() -> None:
    """Arrival order, what comes back first of all, what was taken out not at all."""
    queue = FcfsQueue()
    a, b, c = request("a"), request("b"), request("c")
    for one in (a, b, c):
        queue.push(one)
    queue.discard(b)
    queue.push_front(request("back"))
    assert len(queue) == 3
    assert drain(queue) == ["back", "a", "c"]


def test_priority_then_arrival_then_submission() -> None:
    """Lower runs first; what comes back takes its old place."""
    queue = PriorityQueue()
    queue.push(request("late", 1, 2.0, 3))
    queue.push(request("twin", 1, 1.0, 2))
    queue.push(request("early", 1, 1.0, 1))
    queue.push(request("urgent", 0, 9.0, 4))
    queue.push_front(request("back", 1, 0.5, 0))
    assert drain(queue) == ["urgent", "back", "early", "twin", "late"]


def test_equal_entries_do_not_compare_calls() -> None:
    """A call that was taken out and pushed again leaves a dead twin that is skipped."""
    queue = PriorityQueue()
    one = request("a", 1, 1.0, 1)
    queue.push(one)
    queue.discard(one)
    queue.push(one)
    assert drain(queue) == ["a"]
