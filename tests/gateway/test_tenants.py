"""Keys, limits and the file that holds them."""

from __future__ import annotations

import hashlib
import os

import pytest

from saga.errors import UsageError
from saga.gateway.contracts import Refused
from saga.gateway.settings import Tenant
from saga.gateway.tenants import Tenants


def hashed(key):
    """A key as the file holds it."""
    return hashlib.sha256(key.encode()).hexdigest()


def write(path, text):
    """Write the file, visibly later than before."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))
    return path


FILE = f"""
[[tenant]]
name = "research"
key_sha256 = ["{hashed("sk-one")}", "{hashed("sk-two")}"]
weight = 2
max_calls_in_flight = 2
max_tokens_per_min = 6_000
cache_salt = true
may_go_first = true

[[tenant]]
name = "batch"
key_sha256 = "{hashed("sk-three")}"
"""


@pytest.fixture
def tenants(tmp_path):
    """Two tenants from a file."""
    return Tenants(write(tmp_path / "tenants.toml", FILE))


def test_without_a_file_there_is_one_tenant_and_no_key():
    """The default tenant is anybody's."""
    tenants = Tenants()
    assert not tenants.keyed
    assert tenants.authenticate(None).name == tenants.authenticate(b"Bearer anything").name == "default"


@pytest.mark.parametrize(
    ("authorization", "api_key", "name"),
    [
        (b"Bearer sk-one", None, "research"),
        (b"bearer  sk-two ", None, "research"),
        (b"Bearer sk-three", None, "batch"),
        (None, b"sk-three", "batch"),
    ],
)
def test_a_key_says_whose_call_it_is(tenants, authorization, api_key, name):
    """OpenAI's and Anthropic's ways to send a key both work; a tenant may have several."""
    assert tenants.authenticate(authorization, api_key).name == name


@pytest.mark.parametrize(
    ("authorization", "api_key", "code"),
    [
        (None, None, "missing_api_key"),
        (b"", None, "missing_api_key"),
        (b"Bearer ", None, "missing_api_key"),
        (b"Basic sk-one", None, "missing_api_key"),
        (b"Basic x", b"sk-one", "missing_api_key"),
        (b"Bearer sk-four", None, "invalid_api_key"),
        (b"Bearer \xff\xfe", None, "invalid_api_key"),
        (b"Bearer " + hashed("sk-one").encode(), None, "invalid_api_key"),
    ],
)
def test_other_keys_are_nobodys(tenants, authorization, api_key, code):
    """A missing, malformed or unknown key (or its hash) is refused with a 401 that does not repeat it."""
    with pytest.raises(Refused) as refused:
        tenants.authenticate(authorization, api_key)
    assert (refused.value.status, refused.value.code) == (401, code)
    assert "sk-" not in refused.value.message


def test_a_tenant_has_its_settings(tenants):
    """Weights, limits and the salt come from the file; what is not said has its default."""
    batch, research = tenants.all()
    assert research == Tenant("research", research.keys, 2.0, 2, 6_000, cache_salt=True, may_go_first=True)
    assert batch == Tenant("batch", batch.keys, 1.0, None, None, cache_salt=False, may_go_first=False)


def test_calls_in_flight_are_limited(tenants):
    """The third call at once is refused with a time to wait; one that ends makes room."""
    research = tenants.authenticate(b"Bearer sk-one")
    tenants.begin(research, 1, 0.0)
    tenants.begin(research, 1, 0.0)
    with pytest.raises(Refused) as refused:
        tenants.begin(research, 1, 0.0)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.retry_after_s > 0
    tenants.end("research", 0)
    tenants.begin(research, 1, 0.0)
    assert tenants.in_flight("research") == 2


def test_tokens_per_minute_are_limited_and_come_back(tenants):
    """A bucket of a minute's tokens: empty it is refused, with the time at which the call would fit."""
    research = tenants.authenticate(b"Bearer sk-one")
    tenants.begin(research, 5_000, 0.0)
    tenants.end("research", 1_000)
    with pytest.raises(Refused) as refused:
        tenants.begin(research, 3_000, 0.0)
    assert refused.value.retry_after_s == pytest.approx(30.0)
    tenants.begin(research, 3_000, 30.0)


def test_a_call_larger_than_the_limit_passes_when_the_bucket_is_untouched(tenants):
    """A prompt above a whole minute's tokens is not refused for ever."""
    tenants.begin(tenants.authenticate(b"Bearer sk-one"), 50_000, 0.0)


def test_the_file_is_read_again_when_it_changed(tenants):
    """New keys work after a reload, old ones no longer; nothing happens where nothing changed."""
    assert not tenants.reload()
    path = tenants._path
    write(path, FILE.replace(hashed("sk-three"), hashed("sk-new")))
    assert tenants.reload()
    assert tenants.authenticate(b"Bearer sk-new").name == "batch"
    with pytest.raises(Refused):
        tenants.authenticate(b"Bearer sk-three")


@pytest.mark.parametrize("bad", ["not toml [", "[[tenant]]\nname = 'x'\n", ""])
def test_a_bad_change_leaves_the_tenants_that_were(tenants, bad):
    """A broken or emptied file is an error to report, and locks nobody out."""
    write(tenants._path, bad)
    with pytest.raises(UsageError):
        tenants.reload()
    assert tenants.authenticate(b"Bearer sk-one").name == "research"


GOOD = f'[[tenant]]\nname = "a"\nkey_sha256 = "{hashed("k")}"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + GOOD, "two tenants have the same name"),
        (GOOD + GOOD.replace('"a"', '"b"'), "two tenants share a key"),
        (GOOD.replace('"a"', '"a/b"'), "name is 'a/b'"),
        (GOOD.replace(hashed("k"), "k"), "key_sha256 must be"),
        (GOOD + "weight = 0", "weight is 0"),
        (GOOD + "weight = true", "weight is True"),
        (GOOD + "max_calls_in_flight = 0", "max_calls_in_flight is 0"),
        (GOOD + "cache_salt = 1", "cache_salt is 1"),
        (GOOD + 'may_go_first = "yes"', "may_go_first is 'yes', not true or false"),
        (GOOD + "max_call = 1", "unknown field 'max_call'"),
        ("tenant = 3", r"no \[\[tenant\]\] in it"),
        ("tenant = [3]", "not a table"),
    ],
)
def test_a_bad_file_is_an_error_that_names_the_field(tmp_path, text, message):
    """Each mistake is named with what would be right."""
    with pytest.raises(UsageError, match=message):
        Tenants(write(tmp_path / "tenants.toml", text))


def test_a_missing_file_is_an_error(tmp_path):
    """A path that does not exist is not an open door."""
    with pytest.raises(UsageError, match="cannot be read"):
        Tenants(tmp_path / "nowhere.toml")
