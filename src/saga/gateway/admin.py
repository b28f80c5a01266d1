"""The admin port: metrics, workers, sessions, queue, tenants, and why a session's calls went where they went.

Everything here is cold, so it is aiohttp. It shows names and numbers, never a prompt, an answer or a key. With a key it
is asked for in `Authorization: Bearer` (compared in constant time). Without one the port is loopback only, and requests
that a web page could have sent (an Origin, a Host that is not this machine's) are refused. `ROUTES` is the whole API;
the OpenAPI document is made of it. It refuses to know how decisions are made.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from saga import __version__
from saga.errors import UsageError
from saga.gateway.config import is_loopback, load_worker
from saga.gateway.health import Health
from saga.gateway.metrics import GatewayMetrics
from saga.gateway.scheduling import GatewayScheduling
from saga.gateway.tenants import Tenants
from saga.gateway.worker_config import WorkerConfig
from saga.gateway.workers import Worker
from saga.scheduler.sessions import Session

_MAX_LISTED = 1_000
_MAX_BODY_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. handler: name of the method of `Admin`. query: (name, what it is). body: whether it takes JSON."""

    method: str
    path: str
    handler: str
    summary: str
    query: tuple[tuple[str, str], ...] = ()
    body: bool = False
    open: bool = False


_LIMIT = ("limit", f"At most so many; 100 by default, {_MAX_LISTED} at most.")

ROUTES = (
    Route("GET", "/health", "health", "The process is alive.", open=True),
    Route("GET", "/ready", "ready", "200 where a worker is up, else 503.", open=True),
    Route("GET", "/openapi.json", "openapi", "This document.", open=True),
    Route("GET", "/metrics", "metrics", "Metrics for Prometheus, text exposition format."),
    Route("GET", "/admin/overview", "overview", "Everything that `saga top` shows."),
    Route("GET", "/admin/workers", "workers", "All workers and how they are."),
    Route("POST", "/admin/workers", "add_worker", "Add a worker: fields as in [[worker]] of saga.toml.", body=True),
    Route("GET", "/admin/workers/{name}", "worker", "One worker."),
    Route("DELETE", "/admin/workers/{name}", "remove_worker", "Forget a worker; its calls may finish."),
    Route("POST", "/admin/workers/{name}/drain", "drain_worker", "Send it nothing new."),
    Route("POST", "/admin/workers/{name}/resume", "resume_worker", "Use a drained worker again."),
    Route(
        "GET",
        "/admin/sessions",
        "sessions",
        "Open sessions, those seen last first.",
        (_LIMIT, ("tenant", "Only this tenant's.")),
    ),
    Route("DELETE", "/admin/sessions", "end_session", "End a session.", (("session", "Its name."),)),
    Route("GET", "/admin/queue", "queue", "Calls that wait, and for what.", (_LIMIT,)),
    Route("GET", "/admin/tenants", "tenants", "Tenants, their limits, and what they have had."),
    Route(
        "GET", "/admin/explain", "explain", "A session's last decisions and their reasons.", (("session", "Its name."),)
    ),
)


class Admin:
    """The application behind the admin port."""

    def __init__(
        self,
        scheduling: GatewayScheduling,
        metrics: GatewayMetrics,
        health: Health,
        tenants: Tenants,
        *,
        key: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduling = scheduling
        self._metrics = metrics
        self._health = health
        self._tenants = tenants
        self._key = key
        self._clock = clock
        self._began_s = clock()

    def app(self) -> web.Application:
        """An aiohttp application with all routes."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._guard])
        for route in ROUTES:
            path = route.path.replace("{name}", "{name:.+}")
            app.router.add_route(route.method, path, getattr(self, f"on_{route.handler}"))
        return app

    # ------------------------------------------------------------------ who may ask

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            self._let_in(request)
            return await handler(request)
        except UsageError as error:
            return _error(400, str(error))
        except web.HTTPException as error:
            return _error(error.status, error.text or error.reason)

    def _let_in(self, request: web.Request) -> None:
        if any(route.open and route.path == request.path for route in ROUTES):
            return
        if self._key:
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            given = key.strip().encode() if scheme.lower() == "bearer" else b""
            if not hmac.compare_digest(given, self._key.encode()):
                raise web.HTTPUnauthorized(text="the admin key is missing or wrong")
        elif "Origin" in request.headers or not _is_here(request.host):
            raise web.HTTPForbidden(text="without an admin key, only programs on this machine may ask")

    # ------------------------------------------------------------------ the process

    async def on_health(self, request: web.Request) -> web.Response:
        """Alive."""
        return _json({"status": "alive", "version": __version__})

    async def on_ready(self, request: web.Request) -> web.Response:
        """A worker is up."""
        num_up = self._scheduling.workers.num_up
        return _json({"workers_up": num_up}, 200 if num_up else 503)

    async def on_openapi(self, request: web.Request) -> web.Response:
        """The API's own description."""
        return _json(openapi())

    async def on_metrics(self, request: web.Request) -> web.Response:
        """For Prometheus."""
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._metrics.text(), headers=headers)

    async def on_overview(self, request: web.Request) -> web.Response:
        """For `saga top`. O(workers + tenants)."""
        scheduling = self._scheduling
        return _json(
            {
                "version": __version__,
                "preset": scheduling.composition.name,
                "uptime_s": round(self._clock() - self._began_s, 1),
                "calls": {"waiting": scheduling.num_waiting, "running": scheduling.num_running},
                "sessions": sum(len(pool.scheduler.sessions) for pool in scheduling.pools),
                "workers": [self._show_worker(worker) for worker in scheduling.workers],
                "tenants": self._show_tenants(),
            }
        )

    # ------------------------------------------------------------------ workers

    async def on_workers(self, request: web.Request) -> web.Response:
        """All of them."""
        return _json({"workers": [self._show_worker(worker) for worker in self._scheduling.workers]})

    async def on_worker(self, request: web.Request) -> web.Response:
        """One of them."""
        worker = self._scheduling.workers.get(request.match_info["name"])
        if worker is None:
            raise web.HTTPNotFound(text=f"no worker {request.match_info['name']!r}")
        return _json(self._show_worker(worker))

    async def on_add_worker(self, request: web.Request) -> web.Response:
        """A new one, followed from now on."""
        try:
            data = msgspec.json.decode(await request.read(), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise UsageError(f"the body is not a JSON object: {error}") from error
        for name in ("key_env", "ca_file"):
            if name in data:
                raise UsageError(f"{name} names something on the gateway's machine; write it in saga.toml instead")
        worker = self._scheduling.workers.add(load_worker(data), self._clock())
        self._health.follow(worker)
        return _json(self._show_worker(worker), 201)

    async def on_remove_worker(self, request: web.Request) -> web.Response:
        """Forgotten."""
        return self._change(request, self._scheduling.workers.remove)

    async def on_drain_worker(self, request: web.Request) -> web.Response:
        """Nothing new."""
        return self._change(request, self._scheduling.workers.drain)

    async def on_resume_worker(self, request: web.Request) -> web.Response:
        """Used again."""
        return self._change(request, self._scheduling.workers.resume)

    def _change(self, request: web.Request, change: Callable[[str, float], Worker]) -> web.Response:
        name = request.match_info["name"]
        if self._scheduling.workers.get(name) is None:
            raise web.HTTPNotFound(text=f"no worker {name!r}")
        return _json(self._show_worker(change(name, self._clock())))

    def _show_worker(self, worker: Worker) -> dict[str, Any]:
        seat = self._scheduling.pools.seat_of(worker)
        record = seat.pool.scheduler.fleet.get(seat.name) if seat is not None else None
        return {
            "name": worker.name,
            "url": worker.config.url,
            "state": worker.state,
            "why": worker.why,
            "for_s": round(self._clock() - worker.since_s, 1),
            "models": None if worker.models is None else sorted(worker.models),
            "max_model_len": worker.max_model_len,
            "extensions": worker.extensions,
            "calls": worker.num_calls,
            "served": worker.num_served,
            "failed": worker.num_failed,
            "running": worker.running,
            "waiting": worker.waiting,
            "kv_usage": worker.kv_usage,
            "kv_tokens": worker.kv_tokens,
            "sessions": record.num_live if record is not None else 0,
            "retained_sessions": record.num_active if record is not None else 0,
            "reserved_tokens": round(record.reserved_tokens) if record is not None else 0,
        }

    # ------------------------------------------------------------------ sessions, queue, tenants

    async def on_sessions(self, request: web.Request) -> web.Response:
        """Open sessions. O(sessions)."""
        limit, tenant = _limit(request), request.query.get("tenant", "")
        listed: list[Session] = []
        for pool in self._scheduling.pools:
            listed += [s for s in pool.scheduler.sessions if not tenant or s.tenant == tenant]
        listed.sort(key=lambda session: -session.last_seen_s)
        now_s = self._clock()
        return _json({"total": len(listed), "sessions": [_show_session(s, now_s) for s in listed[:limit]]})

    async def on_end_session(self, request: web.Request) -> web.Response:
        """It will not come back."""
        session = _wanted(request, "session")
        self._scheduling.forget(session)
        return _json({"session": session})

    async def on_queue(self, request: web.Request) -> web.Response:
        """Those who wait, the longest first. O(live steps)."""
        now_s = self._clock()
        waiting = sorted(self._scheduling.waiting(), key=lambda entry: entry[1])
        shown = [
            {
                "session": call.session,
                "step": call.step,
                "tenant": call.tenant,
                "model": call.model,
                "prompt_tokens": call.prompt_tokens,
                "waited_s": round(now_s - since_s, 3),
            }
            for call, since_s in waiting[: _limit(request)]
        ]
        return _json({"total": len(waiting), "queue": shown})

    async def on_tenants(self, request: web.Request) -> web.Response:
        """All of them."""
        return _json({"tenants": self._show_tenants()})

    def _show_tenants(self) -> list[dict[str, Any]]:
        attained: dict[str, float] = {}
        num_sessions: dict[str, int] = {}
        for pool in self._scheduling.pools:
            for view in pool.scheduler.accounts.tenants.values():
                attained[view.tenant] = attained.get(view.tenant, 0.0) + view.attained_s
                num_sessions[view.tenant] = num_sessions.get(view.tenant, 0) + view.num_sessions
        return [
            {
                "name": tenant.name,
                "weight": tenant.weight,
                "sessions": num_sessions.get(tenant.name, 0),
                "attained_s": round(attained.get(tenant.name, 0.0), 3),
                "calls_in_flight": self._tenants.in_flight(tenant.name),
                "max_calls_in_flight": tenant.max_calls_in_flight,
                "max_tokens_per_min": tenant.max_tokens_per_min,
            }
            for tenant in self._tenants.all()
        ]

    async def on_explain(self, request: web.Request) -> web.Response:
        """Why it went where it went."""
        session = _wanted(request, "session")
        decisions = self._scheduling.journal.of(session)
        if not decisions:
            raise web.HTTPNotFound(text=f"nothing is remembered of session {session!r}")
        return _json({"session": session, "decisions": decisions})


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document of `ROUTES`."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        operation: dict[str, Any] = {
            "operationId": route.handler,
            "summary": route.summary,
            "security": [] if route.open else [{"adminKey": []}],
            "responses": {
                "201" if route.handler == "add_worker" else "200": {"description": "Done."},
                "default": {"description": "An error.", "content": _json_of("#/components/schemas/Error")},
            },
        }
        parameters: list[dict[str, Any]] = [
            {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
            for name, text in route.query
        ]
        if "{name}" in route.path:
            parameters.append({"name": "name", "in": "path", "required": True, "schema": {"type": "string"}})
        if parameters:
            operation["parameters"] = parameters
        if route.body:
            operation["requestBody"] = {"required": True, "content": _json_of("#/components/schemas/Worker")}
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "SAGA gateway, admin API", "version": __version__},
        "paths": paths,
        "components": {
            "securitySchemes": {"adminKey": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR_SCHEMA, "Worker": _worker_schema()},
        },
    }


_ERROR_SCHEMA = {
    "type": "object",
    "properties": {"error": {"type": "object", "properties": {"message": {"type": "string"}}}},
}


def _worker_schema() -> dict[str, Any]:
    """Fields of a worker that may be sent."""
    hidden = {"ca_file"}
    schema = msgspec.json.schema(WorkerConfig)["$defs"]["WorkerConfig"]
    properties = {name: value for name, value in schema["properties"].items() if name not in hidden}
    return {"type": "object", "required": ["url"], "properties": properties, "additionalProperties": False}


def _json_of(reference: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": reference}}}


def _show_session(session: Session, now_s: float) -> dict[str, Any]:
    return {
        "session": session.session,
        "task": session.task,
        "tenant": session.tenant,
        "state": session.state.name.lower(),
        "home": session.home,
        "context_tokens": session.context_tokens,
        "steps": session.steps_done,
        "remaining_steps": round(session.remaining_steps, 1),
        "attained_s": round(session.attained_s, 3),
        "idle_s": round(now_s - session.last_seen_s, 1),
        "held_for_s": round(session.hold_until_s - now_s, 1) if session.hold_until_s < float("inf") else None,
    }


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", "100")
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_LISTED:
        raise UsageError(f"limit = {text[:20]!r}: expected 1 to {_MAX_LISTED}")
    return int(text)


def _wanted(request: web.Request, name: str) -> str:
    value = request.query.get(name, "")
    if not value:
        raise UsageError(f"{name} is missing: ?{name}=...")
    return value


def _is_here(host: str) -> bool:
    """Whether a Host header names this machine: a page that was led here by its own name server does not."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return is_loopback(name.strip("[]"))


def _json(data: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(data), status=status, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    return _json({"error": {"message": message, "code": status}}, status)
