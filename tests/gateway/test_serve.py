"""Tests of what only the assembled gateway does: files that change, workers with TLS and keys of their own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import ssl

import aiohttp
import pytest
import trustme
from aiohttp import web
from yarl import URL

from saga.errors import PeerError, UsageError
from saga.gateway import serve
from saga.gateway.config import GatewayConfig, load_config
from saga.gateway.serve import Gateway
from saga.gateway.worker_config import WorkerConfig


@contextlib.asynccontextmanager
async def worker(*, tls: ssl.SSLContext | None = None, model="m", seen=None):
    """A server that answers any chat call and writes down its headers; its URL."""

    async def chat(request: web.Request) -> web.Response:
        if seen is not None:
            seen.append(dict(request.headers))
        return web.json_response({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": model, "object": "model"}]})

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def gateway(config, **fields):
    """A gateway that is up, and `ask(headers)` -> status of a chat call."""
    made = Gateway(config, **fields)
    await made.start()
    try:
        async with aiohttp.ClientSession() as http:

            async def ask(model="m", **headers):
                body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
                async with http.post(f"{made.url}/v1/chat/completions", json=body, headers=headers) as answer:
                    await answer.read()
                    return answer.status

            yield made, ask
    finally:
        await made.stop(1.0)


def config(*workers, **fields):
    """On free ports."""
    return GatewayConfig(port=0, admin_port=0, workers=tuple(entry.named() for entry in workers), **fields)


def play(work):
    """Run it; a hang is a failure."""

    async def bounded():
        async with asyncio.timeout(15.0):
            await work()

    asyncio.run(bounded())


async def until(true):
    """Wait for what the gateway will do, 5 s at most."""
    async with asyncio.timeout(5.0):
        while not true():  # noqa: ASYNC110 - a file's change is noticed by looking
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_has_its_own_key_and_never_the_clients(tmp_path, processes):
    """Over TLS, with an authority of its own."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)

    async def work():
        seen = []
        async with worker(tls=context, seen=seen) as url:
            entry = WorkerConfig(url, key="the worker's", ca_file=str(file))
            async with gateway(config(entry, processes=processes)) as (_, ask):
                assert await ask(authorization="Bearer the client's", **{"x-api-key": "the client's"}) == 200
            assert seen[0]["Authorization"] == "Bearer the worker's"
            assert "the client's" not in str(seen)

    play(work)


@pytest.mark.parametrize("name", ["read", "sent", "passed"])
def test_a_worker_may_have_any_name(name):
    """Also one that the gateway's own code uses for something. The second call repeats the first one's head."""

    async def work():
        async with worker() as url, gateway(config(WorkerConfig(url, name=name))) as (_, ask):
            assert [await ask(), await ask()] == [200, 200]

    play(work)


def test_a_certificate_that_nobody_vouches_for_is_not_talked_to():
    """Unless verify_tls is off."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    async def work():
        async with worker(tls=context) as url:
            async with gateway(config(WorkerConfig(url))) as (made, _):
                assert made.workers.num_up == 0
            async with gateway(config(WorkerConfig(url, verify_tls=False))) as (made, ask):
                assert made.workers.num_up == 1
                assert await ask() == 200

    play(work)


def test_workers_of_the_file_follow_its_changes(tmp_path, monkeypatch, caplog):
    """Added, removed; a bad file leaves the old ones; those of others are left alone."""
    monkeypatch.setattr(serve, "_WATCH_FILES_S", 0.02)
    file = tmp_path / "saga.toml"

    def write(*urls, more=""):
        text = "".join(f'[[worker]]\nurl = "{url}"\nname = "{url[-5:]}"\n' for url in urls)
        file.write_text("[gateway]\nport = 0\nadmin_port = 0\n" + text + more)

    async def work():
        async with worker() as one, worker() as two, worker() as three:
            write(one)
            async with gateway(load_config(file), file=file) as (made, ask):
                made.health.follow(made.workers.add(WorkerConfig(three, name="by hand"), 0.0))
                write(one, two)
                await until(lambda: made.workers.num_up == 3)
                write(two, more="[nonsense]\n")
                await until(lambda: "is bad" in caplog.text)
                assert len(made.workers) == 3
                write(two)
                await until(lambda: {w.name for w in made.workers} == {two[-5:], "by hand"})
                assert await ask() == 200

    play(work)


def test_files_are_followed_on_after_a_ca_file_that_is_none(tmp_path, monkeypatch, caplog):
    """It is said, the old workers hold, and the next change counts."""
    monkeypatch.setattr(serve, "_WATCH_FILES_S", 0.02)
    file, none = tmp_path / "saga.toml", tmp_path / "ca.pem"
    none.write_text("not a certificate")

    def write(url, more=""):
        text = f'[gateway]\nport = 0\nadmin_port = 0\n[[worker]]\nurl = "{url}"\nname = "{url[-5:]}"\n'
        file.write_text(text + more)

    async def work():
        async with worker() as one, worker() as two:
            write(one)
            async with gateway(load_config(file), file=file) as (made, ask):
                write(two, f'ca_file = "{none}"\n')
                await until(lambda: "is bad" in caplog.text)
                assert [each.name for each in made.workers] == [one[-5:]]
                write(two)
                await until(lambda: [each.name for each in made.workers] == [two[-5:]])
                await until(lambda: made.workers.num_up == 1)
                assert await ask() == 200

    play(work)


@pytest.mark.parametrize("processes", [1, 2])
def test_tenants_of_the_file_follow_its_changes(tmp_path, monkeypatch, processes):
    """A new key is let in, an old one no longer, weights are those of the file."""
    monkeypatch.setattr(serve, "_WATCH_FILES_S", 0.02)
    file = tmp_path / "tenants.toml"

    def write(key, weight):
        digest = hashlib.sha256(key.encode()).hexdigest()
        file.write_text(f'[[tenant]]\nname = "t"\nweight = {weight}\nkey_sha256 = ["{digest}"]\n')
        os.utime(file, ns=(weight, weight))

    async def work():
        write("old", 1)
        fields = {"tenants": str(file), "processes": processes}
        async with worker() as url, gateway(config(WorkerConfig(url), **fields)) as (made, ask):
            assert await ask(authorization="Bearer old") == 200
            write("new", 3)
            await until(lambda: made.tenants.all()[0].weight == 3.0)
            assert await ask(authorization="Bearer old") == 401
            assert await ask(authorization="Bearer new") == 200
            (pool,) = made.scheduling.pools
            assert pool.scheduler.accounts.tenants["t"].weight == 3.0

    play(work)


def test_models_of_all_workers_are_listed_and_calls_find_theirs():
    """One list, each call to who serves it."""

    async def work():
        seen = []
        async with worker(model="a") as one, worker(model="b", seen=seen) as two:
            async with gateway(config(WorkerConfig(one), WorkerConfig(two))) as (made, ask):
                assert list(made._model_cards()) == ["a", "b"]
                assert [await ask(model) for model in ("b", "b", "a", "c")] == [200, 200, 200, 404]
            assert len(seen) == 2

    play(work)


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ("org/llama-3.1", 200),
        ("org%2Fllama-3.1", 200),
        ("org%2fllama%2D3.1", 200),
        ("org", 404),
        ("org%252Fllama-3.1", 404),
        ("org%2Fllama-3.1%FF", 404),
        ("org%2F..%2Fllama-3.1", 400),
        ("", 404),
    ],
)
def test_a_model_is_found_by_its_name_however_it_is_written(written, status):
    """Names hold slashes; each may be sent as it is or percent-encoded, once."""

    async def work():
        async with (
            worker(model="org/llama-3.1") as one,
            gateway(config(WorkerConfig(one))) as (made, _),
            aiohttp.ClientSession() as http,
            http.get(URL(f"{made.url}/v1/models/{written}", encoded=True)) as answer,
        ):
            assert answer.status == status
            body = await answer.json()
            assert body.get("id") == ("org/llama-3.1" if status == 200 else None)
            assert ("error" in body) == (status != 200)

    play(work)


def test_the_same_secret_after_a_restart(tmp_path):
    """Salts and names made up before mean the same after."""

    async def work():
        secrets = []
        for _ in range(2):
            async with gateway(config(db=str(tmp_path / "saga.db"))) as (made, _):
                secrets.append(made.identity.settings.secret)
        assert secrets[0] == secrets[1]
        assert len(secrets[0]) == 32

    play(work)


@pytest.mark.parametrize(
    ("part", "data"),
    [
        ("scheduling", {"model": {"format": 99}, "homes": [["s"]]}),
        ("identity", {"saved_at": 1.0, "data": {"format": 99}}),
        ("identity", {"data": {}}),
        ("identity", ["nothing"]),
    ],
)
def test_a_snapshot_of_another_version_is_left_behind_with_a_warning(tmp_path, caplog, part, data):
    """The gateway starts without it, and with the other parts."""

    async def work():
        db = str(tmp_path / "saga.db")
        async with gateway(config(db=db)) as (made, _):
            made._parts = lambda: iter([(part, data)])
        async with gateway(config(db=db)):
            assert "cannot be used" in caplog.text

    play(work)


def test_what_calls_belong_to_is_known_after_a_restart(tmp_path):
    """Conversations and learned bytes per token are there again: a call that goes on does so in its session."""

    async def work():
        found, ratios = [], []
        messages = [{"role": "user", "content": "Hello"}, {"role": "user", "content": "you"}]
        async with worker() as url:
            for _ in range(2):
                async with gateway(config(WorkerConfig(url, name="w"), db=str(tmp_path / "saga.db"))) as (made, _):
                    known = list(made.identity.conversations._table)
                    ratios.append(made.identity.estimator.bytes_per_token("m"))
                    async with aiohttp.ClientSession() as http:
                        body = {"model": "m", "messages": messages}
                        async with http.post(f"{made.url}/v1/chat/completions", json=body) as answer:
                            found.append((answer.status, answer.headers["x-saga-session"]))
                    messages += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "more"}]
                    ratios.append(made.identity.estimator.bytes_per_token("m"))
            assert found[0] == found[1]
            assert known == [found[0][1]]
            assert ratios[0] == 4.0 != ratios[1] == ratios[2]

    play(work)


def test_a_taken_admin_port_leaves_nothing_listening():
    """One clear error, and the public port is free again."""

    async def work():
        async with worker() as url:
            port = int(url.rpartition(":")[2])
            made = Gateway(GatewayConfig(port=0, admin_port=port))
            with pytest.raises(PeerError, match=rf":{port} \(admin\): the port is in use"):
                await made.start()
            with pytest.raises(OSError, match="Connect"):
                await asyncio.open_connection("127.0.0.1", int(made.url.rpartition(":")[2]))

    play(work)


def test_a_ca_file_that_is_none_is_refused(tmp_path):
    """With the worker's name."""
    file = tmp_path / "ca.pem"
    file.write_text("not a certificate")
    with pytest.raises(UsageError, match=r"gpu.*ca\.pem"):
        Gateway(config(WorkerConfig("https://gpu", name="gpu", ca_file=str(file))))
