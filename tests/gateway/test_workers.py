"""Tests of the registry of workers and its circuit."""

from __future__ import annotations

import pytest

from saga.errors import UsageError
from saga.gateway.worker_config import CircuitRules, WorkerConfig
from saga.gateway.workers import Workers, WorkerState


class Diary:
    """A watcher that writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def worker_up(self, worker) -> None:
        self.lines.append(f"up {worker.name}")

    def worker_leaving(self, worker) -> None:
        self.lines.append(f"leaving {worker.name}")

    def worker_reported(self, worker) -> None:
        self.lines.append(f"reported {worker.name}")


def one_worker(**rules):
    """A registry with one worker that is up, and its diary."""
    workers, diary = Workers(CircuitRules(**rules)), Diary()
    workers.watch(diary)
    worker = workers.add(WorkerConfig("http://127.0.0.1:9000", name="a"), 0.0)
    workers.passed(worker, 0.0)
    return workers, worker, diary


def test_a_worker_gets_calls_only_after_its_first_check():
    """Starting is not up; the watcher hears of it once it is."""
    workers, diary = Workers(), Diary()
    workers.watch(diary)
    worker = workers.add(WorkerConfig("http://127.0.0.1:9000"), 0.0)
    assert (worker.is_up, diary.lines, worker.name) == (False, [], "127.0.0.1:9000")
    workers.passed(worker, 1.0)
    assert (worker.is_up, diary.lines) == (True, ["up 127.0.0.1:9000"])


def test_the_circuit_opens_after_failures_in_a_row():
    """A success in between starts the count again."""
    workers, worker, diary = one_worker(failures_to_open=3)
    for _ in range(2):
        workers.failed(worker, "reset", 1.0)
    workers.succeeded(worker)
    for _ in range(2):
        workers.failed(worker, "reset", 1.0)
    assert worker.is_up
    workers.failed(worker, "reset", 1.0)
    assert (worker.state, diary.lines) == (WorkerState.DOWN, ["up a", "leaving a"])


def test_nobody_listening_opens_it_at_once():
    """A refused connection needs no second opinion."""
    workers, worker, _ = one_worker()
    workers.failed(worker, "connection refused", 1.0, unreachable=True)
    assert worker.state is WorkerState.DOWN


def test_an_open_circuit_ignores_checks_until_its_time_and_doubles_when_it_reopens():
    """Half-open: one failure on trial opens it for twice as long; a success ends the trial."""
    workers, worker, _ = one_worker(failures_to_open=1, open_s=1.0)
    workers.failed(worker, "reset", 10.0)
    workers.passed(worker, 10.5)
    assert worker.state is WorkerState.DOWN
    workers.passed(worker, 11.0)
    assert worker.is_up
    assert worker.on_trial
    workers.failed(worker, "reset", 12.0)
    assert worker.open_until_s == 14.0
    workers.passed(worker, 14.0)
    workers.succeeded(worker)
    assert (worker.on_trial, worker.num_opened) == (False, 0)


def test_a_drained_worker_stays_so_until_it_is_resumed():
    """Checks do not bring it back, its operator does."""
    workers, worker, diary = one_worker()
    workers.drain("a", 1.0)
    workers.passed(worker, 2.0)
    assert worker.state is WorkerState.DRAINING
    workers.resume("a", 3.0)
    workers.passed(worker, 4.0)
    assert worker.is_up
    assert diary.lines == ["up a", "leaving a", "up a"]


def test_a_removed_worker_is_unknown_and_its_name_is_free():
    """Remove, then add again."""
    workers, worker, diary = one_worker()
    workers.remove("a", 1.0)
    assert (workers.get("a"), worker.state, diary.lines[-1]) == (None, WorkerState.REMOVED, "leaving a")
    workers.add(WorkerConfig("http://127.0.0.1:9000", name="a"), 2.0)
    with pytest.raises(UsageError, match="is there already"):
        workers.add(WorkerConfig("http://127.0.0.1:9001", name="a"), 2.0)
    with pytest.raises(UsageError, match="no worker 'b'"):
        workers.drain("b", 1.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"url": "127.0.0.1:9000"},
        {"url": "ftp://127.0.0.1"},
        {"url": "http://127.0.0.1:99999"},
        {"url": "http://me:secret@127.0.0.1:9000"},
        {"url": "http://127.0.0.1:9000/?x=1"},
        {"url": "http://a:1", "kv_tokens": 0},
        {"url": "http://a:1", "prefill_tokens_per_s": 0.0},
        {"url": "http://a:1", "key": "two\r\nlines"},
        {"url": "http://a:1", "key_header": "x y"},
    ],
)
def test_a_worker_that_cannot_be_is_refused(bad):
    """Each bad field is a UsageError."""
    with pytest.raises(UsageError):
        WorkerConfig(**bad)


def test_a_secret_in_an_url_is_not_repeated_in_the_error():
    """What is refused is not shown."""
    with pytest.raises(UsageError) as error:
        WorkerConfig("http://me:secret@127.0.0.1:9000")
    assert "secret" not in str(error.value)


def test_the_address_carries_the_workers_key_and_no_double_v1():
    """A base URL as clients write it, with /v1, means the same worker."""
    address = WorkerConfig("https://gpu.example:8443/llm/v1/", name="a", key="k").address()
    assert (address.host, address.port, address.tls, address.base_path) == ("gpu.example", 8443, True, "/llm")
    assert address.headers == ((b"authorization", b"Bearer k"),)
    assert WorkerConfig("http://a", key="k", key_header="X-Key").address().headers == ((b"x-key", b"k"),)
    assert WorkerConfig("http://a").address().port == 80
