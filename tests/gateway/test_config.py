"""Tests of reading saga.toml."""

from __future__ import annotations

from dataclasses import replace

import pytest

from saga.errors import UsageError
from saga.gateway.config import GatewayConfig, is_loopback, load_config

WHOLE = """
[gateway]
port = 9000
db = "saga.db"
[scheduling]
preset = "vllm_apc"
max_queue = 7
[health]
interval_s = 0.5
[circuit]
failures_to_open = 5
[limits]
max_connections = 12
[limits.message]
max_body_bytes = 1000
[limits.upstream]
connect_timeout_s = 0.5
[[worker]]
url = "http://gpu1:8000"
kv_tokens = 1000
models = ["m"]
[[worker]]
url = "https://gpu2"
name = "two"
key_env = "GPU2_KEY"
kv_events = "tcp://127.0.0.1:5557"
"""


def written(tmp_path, text):
    """A file with that text."""
    path = tmp_path / "saga.toml"
    path.write_text(text)
    return path


def test_every_section_is_read(tmp_path, monkeypatch):
    """Values land where they belong; what is not said has its default; keys come from the environment."""
    monkeypatch.setenv("GPU2_KEY", "secret")
    config = load_config(written(tmp_path, WHOLE))
    assert (config.port, config.admin_port, config.db) == (9000, 8001, "saga.db")
    assert (config.scheduling.preset, config.scheduling.max_queue) == ("vllm_apc", 7)
    assert (config.health.interval_s, config.circuit.failures_to_open) == (0.5, 5)
    limits = config.limits
    assert (limits.max_connections, limits.message.max_body_bytes, limits.upstream.connect_timeout_s) == (12, 1000, 0.5)
    one, two = config.workers
    assert (one.name, one.kv_tokens, one.models) == ("gpu1:8000", 1000, ("m",))
    assert (two.name, two.key, dict(config.kv_events)) == ("two", "secret", {"two": "tcp://127.0.0.1:5557"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gatway]", "did you mean 'gateway'"),
        ("[gateway]\nprot = 1", "did you mean 'port'"),
        ('[gateway]\nport = "x"', "gateway: Expected `int`"),
        ("[gateway]\nworkers = []", "workers"),
        ("[scheduling]\nmax_queue = 1.5", "scheduling"),
        ("[[worker]]\nname = 'a'", "worker 1 has no url"),
        ("[[worker]]\nurl = 'gpu:8000'", "expected http://host:port"),
        ("[[worker]]\nurl = 'http://a:1'\nspeed = 2", "speed"),
        ("[[worker]]\nurl = 'http://a:1'\n[[worker]]\nurl = 'http://a:1'", "names are unique"),
        ("[[worker]]\nurl = 'http://a:1'\nkey_env = 'NO_SUCH_VARIABLE'", "no such variable"),
        ("[[worker]]\nurl = 'http://a:1'\nca_file = '/nowhere.pem'", "no such file"),
        ("[limits]\nmax_conections = 1", "did you mean 'max_connections'"),
        ("[limits]\nmax_connections = 0", "max_connections = 0: must be more than 0"),
        ("[limits]\nmessage = 3", "written [limits.message]"),
        ("[limits.message]\nmax_body = 1", "did you mean 'max_body_bytes'"),
        ("worker = 3", "list of tables"),
        ("gateway = 3", "must be a table"),
        ("port = ", "is not TOML"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, text, said):
    """The message names file, field and what would be right."""
    with pytest.raises(UsageError) as error:
        load_config(written(tmp_path, text))
    assert said in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    """With its name."""
    with pytest.raises(UsageError, match=r"nowhere\.toml: No such file"):
        load_config(tmp_path / "nowhere.toml")


def test_nobody_listens_to_strangers_without_keys():
    """Another address needs tenants' keys, the admin port one of its own, or a clear word."""
    GatewayConfig().check()
    with pytest.raises(UsageError, match="--tenants FILE"):
        GatewayConfig(host="0.0.0.0").check()  # noqa: S104 - refused
    GatewayConfig(host="0.0.0.0", tenants="t.toml").check()  # noqa: S104
    with pytest.raises(UsageError, match="admin_key"):
        GatewayConfig(admin_host="10.0.0.1").check()
    GatewayConfig(admin_host="10.0.0.1", admin_key="k").check()
    replace(GatewayConfig(), host="::", admin_host="::", allow_unauthenticated=True).check()


def test_loopback_is_known():
    """Names and addresses of this machine only."""
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    others = ("0.0.0.0", "::", "10.0.0.1", "example.org", "127", "127.0.0.1.evil", "")  # noqa: S104 - looked at only
    assert not any(is_loopback(host) for host in others)


@pytest.mark.parametrize("bad", [{"port": 70_000}, {"admin_port": -1}, {"log_level": "loud"}])
def test_values_out_of_range_are_refused(bad):
    """Ports and levels."""
    with pytest.raises(UsageError):
        GatewayConfig(**bad).check()
