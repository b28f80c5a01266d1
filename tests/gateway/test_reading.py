"""Reading a request knows its configuration and nothing else."""

from __future__ import annotations

import json

import pytest

from saga.gateway.contracts import Kind, Refused, Request
from saga.gateway.reading import Reader
from saga.gateway.settings import IdentitySettings

MESSAGES = [{"role": "system", "content": "rules " * 100}, {"role": "user", "content": "hello"}]


def request(body, path="/v1/chat/completions", method="POST", **headers):
    """A request as the front hands it over."""
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(method, path, path, fields, json.dumps(body).encode())


def reader(secret=b"s", **settings):
    """A reader of that secret."""
    return Reader(settings=IdentitySettings(secret=secret, **settings))


def hashes(reading):
    """What a digest says at once."""
    digest = reading.digest
    return digest.chain, digest.end, digest.prefix, digest.body


def test_readers_of_one_secret_read_alike_and_others_do_not():
    """As many processes as one likes give the same hashes; nobody without the secret does."""
    asked = request({"model": "m", "messages": MESSAGES})
    one, same, other = (hashes(reader(secret).read(asked)) for secret in (b"s", b"s", b"t"))
    assert one == same
    assert all(mine != theirs for mine, theirs in zip(one, other, strict=True))


def test_reading_twice_is_reading_once():
    """Nothing is remembered: the same request says the same, and no limit has begun."""
    one = reader()
    asked = request({"model": "m", "messages": MESSAGES}, x_saga_session="s", x_stainless_retry_count="1")
    first, second = one.read(asked), one.read(asked)
    assert hashes(first) == hashes(second)
    assert (first.scope, first.session, first.retrying) == (second.scope, second.session, True)
    assert one.tenants.in_flight("default") == 0


def test_names_lie_inside_their_tenant():
    """Whatever a client calls itself."""
    said = reader().read(
        request(
            {"model": "m", "messages": MESSAGES},
            x_saga_session="a~b",
            x_saga_parent_session="p",
            x_saga_task="t",
            x_saga_workflow="w",
            x_saga_tenant="other/side",
        )
    )
    names = (said.session, said.parent, said.task, said.call.workflow, said.scope)
    assert all(name.startswith("other%2Fside/") and "~" not in name for name in names)


def test_a_call_that_no_session_owns_has_no_digest():
    """Embeddings and unknown paths; a stored response that is asked about is named."""
    one = reader()
    assert one.read(request({"model": "m", "input": "x"}, "/v1/embeddings")).digest is None
    asked = one.read(request({}, "/v1/responses/resp_1/input_items", "GET"))
    assert (asked.call.kind, asked.previous, asked.digest) == (Kind.OTHER, "resp_1", None)


@pytest.mark.parametrize("body", [[], {"model": 3}, {"model": "m"}])
def test_what_cannot_be_read_is_refused(body):
    """With 400, before anything is asked of anybody."""
    with pytest.raises(Refused) as refused:
        reader().read(request(body))
    assert refused.value.status == 400
