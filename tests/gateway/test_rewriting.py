"""Heads and bodies as they leave: what is passed on, replaced and added."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.addresses import WorkerAddress
from saga.gateway.contracts import Call, Kind, Refused, Request, Ticket
from saga.gateway.rewriting import (
    answer_fields,
    header_value,
    length_line,
    notes,
    refusal,
    request_head,
    whole_answer,
    with_fields,
)

ADDRESS = WorkerAddress("w", "10.0.0.1", 8000, base_path="/base", headers=((b"authorization", b"Bearer worker"),))


def request(*headers: tuple[bytes, bytes], method: str = "POST") -> Request:
    """A request with these header fields."""
    return Request(method, "/v1/x?q=1", "/v1/x", list(headers), b"")


def test_the_clients_credentials_stay_here() -> None:
    """Keys and cookies never reach a worker; the worker's own key does; other end-to-end fields pass."""
    secret = [b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie", b"proxy-authorization"]
    head = request_head(request(*[(name, b"SECRET") for name in secret], (b"x-note", b"kept")), ADDRESS)
    assert b"SECRET" not in head
    assert head.startswith(b"POST /base/v1/x?q=1 HTTP/1.1\r\nhost: 10.0.0.1:8000\r\n")
    assert head.count(b"authorization: Bearer worker\r\n") == 1
    assert b"x-note: kept\r\n" in head


def test_hop_by_hop_fields_end_here() -> None:
    """Those that RFC 9110 names and those that Connection names, in both directions."""
    headers = [(b"connection", b"X-Hop, close"), (b"x-hop", b"1"), (b"te", b"trailers"), (b"upgrade", b"h2c")]
    headers += [(b"keep-alive", b"timeout=5"), (b"trailer", b"x"), (b"host", b"mine"), (b"x-end", b"2")]
    head = request_head(request(*headers), ADDRESS)
    assert head.count(b"\r\n") == 4, head  # request line, host, x-end, the worker's key
    assert answer_fields([*headers[:-2], (b"x-end", b"2")]) == [(b"x-end", b"2")]


def test_a_worker_cannot_speak_for_the_gateway() -> None:
    """x-saga-* fields of a worker are dropped."""
    assert answer_fields([(b"x-saga-worker", b"other"), (b"server", b"uvicorn")]) == [(b"server", b"uvicorn")]


def test_lengths_are_given_where_methods_have_bodies() -> None:
    """A POST without a body says 0; a GET says nothing."""
    assert length_line(request(), 0) == b"content-length: 0\r\n\r\n"
    assert length_line(request(method="GET"), 0) == b"\r\n"
    assert length_line(request(method="DELETE"), 3) == b"content-length: 3\r\n\r\n"


def test_hosts_are_written_as_hosts() -> None:
    """The usual port is left out, IPv6 stands in brackets."""
    assert b"host: a\r\n" in request_head(request(), WorkerAddress("w", "a", 443, tls=True))
    assert b"host: [::1]:80\r\n" in request_head(request(), WorkerAddress("w", "::1", 80, tls=True))


@given(
    st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=4),
    st.dictionaries(st.sampled_from(["priority", "session_id"]), st.integers(), max_size=2),
    st.sampled_from(["", " ", "\n\t "]),
)
def test_fields_are_added_and_nothing_else_changes(said, extra, space) -> None:
    """The body with its fields reads as both together (added ones win), and begins with the client's own bytes."""
    body = space.encode() + json.dumps(said).encode() + space.encode()
    sent = with_fields(body, extra)
    assert json.loads(sent) == {**said, **extra}
    assert sent.startswith(body.rstrip()[:-1])


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"  ", b"}"])
def test_what_is_no_object_is_left_alone(body) -> None:
    """Fields are added to objects only."""
    assert with_fields(body, {"a": 1}) == body


@given(st.text(max_size=400))
def test_header_values_are_safe(text) -> None:
    """Whatever a reason says, its header value is bounded printable ASCII."""
    value = header_value(text)
    assert len(value) <= 256
    assert all(0x20 <= byte <= 0x7E for byte in value)


def test_notes_cannot_be_used_to_inject_a_header() -> None:
    """A session named with CR LF stays one line."""
    call = Call(Kind.CHAT, request(), "t", "evil\r\nset-cookie: a=b", "t", "s")
    lines = notes(Ticket(call, ADDRESS, 0.0126, "because\nof\0this")).split(b"\r\n")
    assert lines == [
        b"x-saga-session: evil??set-cookie: a=b",
        b"x-saga-worker: w",
        b"x-saga-queued-ms: 12",
        b"x-saga-reason: because?of?this",
        b"",
    ]


def test_a_refusal_has_the_shape_of_openais_errors() -> None:
    """message, type, param and code; Retry-After in whole seconds, at least one."""
    status, headers, body = refusal(Refused(429, "later", kind="rate_limit_error", code="busy", retry_after_s=0.2))
    assert status == 429
    assert (b"retry-after", b"1") in headers
    error = {"message": "later", "type": "rate_limit_error", "param": None, "code": "busy"}
    assert json.loads(body) == {"error": error}


def test_an_answer_made_here_is_framed() -> None:
    """Its length is there, its body is not where the request was a HEAD or the status has none."""
    assert whole_answer(200, [(b"date", b"x")], b"ok", keep_alive=True).endswith(b"content-length: 2\r\n\r\nok")
    head_only = whole_answer(200, [], b"ok", keep_alive=False, head_only=True)
    assert head_only.endswith(b"content-length: 2\r\nconnection: close\r\n\r\n")
    assert b"content-length" not in whole_answer(204, [], b"", keep_alive=True)
