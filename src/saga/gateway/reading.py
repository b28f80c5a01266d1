"""What a request says, before anybody's memory is asked: tenant, body, names it gives itself, its prompt as hashes.

    key -> tenant; body -> what it asks; conventions -> what it calls itself; messages -> hashes

This is the half of identity that costs O(bytes) and knows nothing but its configuration, so that as many processes as
there are cores can do it; `identity` is the other half. Names live inside their tenant: a session is `tenant/name`, the
tenant's part holds no slash, and what the gateway makes up is marked with a tilde that no client's name can hold.
It refuses to know conversations, limits, workers and sockets.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from urllib.parse import quote

import msgspec
from msgspec import Raw
from xxhash import xxh3_64_intdigest as xxh3

from saga.gateway.body import Body, parse
from saga.gateway.contracts import MAX_CLASS, Call, Kind, Refused, Request, kind_of
from saga.gateway.conversations import Digest, Prompt, ends_with_tool, seed_of
from saga.gateway.settings import DEFAULT_TENANT, IdentitySettings, Tenant
from saga.gateway.tenants import Tenants
from saga.wire import Named, Resolver

_STATELESS: Final = frozenset({Kind.CHAT, Kind.COMPLETIONS, Kind.EMBEDDINGS, Kind.MESSAGES})
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_RESPONSES: Final = "/v1/responses/"
_USAGE: Final = b'{"include_usage":true}'
_JSON_SPACE: Final = b" \t\n\r"
_MIN_PREFIX_BYTES: Final = 256
_MAX_WORDS: Final = 8_192
_MAX_WORDS_BYTES: Final = 1_024
_ANY_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])

_Words: TypeAlias = tuple[tuple[tuple[bytes, bytes], ...], tuple[tuple[str, bytes], ...]]
"""(headers, fields of the body) by which a call says whose it is."""


@dataclass(frozen=True, slots=True)
class _Head:
    """What a request's head says. words: the headers in which it says whose it is. Its repr shows no key."""

    kind: Kind
    authorization: bytes | None = field(repr=False)
    api_key: bytes | None = field(repr=False)
    encoded: bool
    retrying: bool
    words: tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True, init=False)
class Reading:
    """A request as it was read. call: complete but for session, task, step and what estimates and memory add.

    size: bytes of prompt. digest: None for a call that no session owns; then scope and the rest say nothing.
    scope: what content-found names begin with. session, parent, task: as the client names them, inside their tenant.
    deadline_s: from now. previous: a stored response that it continues or asks about, "" for none. retrying: the client
    says that it repeats itself.
    """

    call: Call
    tenant: Tenant
    size: int
    previous: str
    digest: Prompt | None
    scope: str
    session: str | None
    parent: str | None
    task: str | None
    deadline_s: float | None
    retrying: bool

    def __init__(
        self,
        call: Call,
        tenant: Tenant,
        size: int = 0,
        previous: str = "",
        digest: Prompt | None = None,
        scope: str = "",
        session: str | None = None,
        parent: str | None = None,
        task: str | None = None,
        deadline_s: float | None = None,
        *,
        retrying: bool = False,
    ) -> None:
        self.call = call
        self.tenant = tenant
        self.size = size
        self.previous = previous
        self.digest = digest
        self.scope = scope
        self.session = session
        self.parent = parent
        self.task = task
        self.deadline_s = deadline_s
        self.retrying = retrying


class Reader:
    """Reads requests. Not thread-safe; never blocks; readers of one secret and one tenants' file read alike."""

    def __init__(
        self,
        tenants: Tenants | None = None,
        resolver: Resolver | None = None,
        settings: IdentitySettings | None = None,
    ) -> None:
        self.settings = settings if settings is not None else IdentitySettings()
        self.secret = self.settings.secret or secrets.token_bytes(32)
        self.tenants = tenants if tenants is not None else Tenants()
        self.resolver = resolver if resolver is not None else Resolver()
        self._seed = xxh3(self.secret)
        self._named_tenants: dict[str, Tenant] = {}
        self._words: dict[_Words, Named] = {}

    def read(self, request: Request) -> Reading:
        """What it says; raises Refused (400, 401). Cost: O(bytes of the body)."""
        head = self._head(request)
        tenant = self.tenants.authenticate(head.authorization, head.api_key)
        kind = head.kind
        if kind is Kind.OTHER:
            return _alone(kind, request, tenant)
        if head.encoded:
            raise Refused(400, "a compressed body is not read here: send it as it is", code="bad_encoding")
        body = parse(kind, request.body)
        named = self._said(head, body)
        self._check_ours(named)
        tenant = self._believed(tenant, named)
        if kind is Kind.EMBEDDINGS or not body.single:
            reading = _alone(kind, request, tenant, body)
            reading.call.body = self._body_of(reading.call, body, None, tenant)
            return reading
        return self._of_session(kind, request, body, named, tenant, retrying=head.retrying)

    def _head(self, request: Request) -> _Head:
        """What the head says; read once for requests whose heads are the same."""
        head: _Head | None = request.memo.read
        if head is None:
            headers = dict(reversed(request.headers))  # of equal names the first counts
            head = request.memo.read = _Head(
                kind_of(request.method, request.path),
                headers.get(b"authorization"),
                headers.get(b"x-api-key"),
                headers.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"),
                _retrying(headers),
                self.resolver.heard(request.headers),
            )
        return head

    def _said(self, head: _Head, body: Body) -> Named:
        """What the call says about itself. The calls of a session do so in the same words, which are read once.

        Words that cannot be read are not remembered, so that each time counts; long ones are not either.
        """
        words = (head.words, body.extensions)
        named = self._words.get(words)
        if named is None:
            named = self.resolver.resolve(words[0], body.fields)
            num_bytes = sum(len(name) + len(value) for part in words for name, value in part)
            if not named.ignored and num_bytes <= _MAX_WORDS_BYTES:
                if len(self._words) >= _MAX_WORDS:
                    self._words.clear()
                self._words[words] = named
        return named

    def _of_session(
        self, kind: Kind, request: Request, body: Body, named: Named, tenant: Tenant, *, retrying: bool
    ) -> Reading:
        scope = f"{tenant.name}/"
        session = parent = None
        if named.session is not None:
            inside = scope + _escaped(named.session)
            scope = inside
            if not named.weak:
                session = inside
                parent = f"{tenant.name}/{_escaped(named.parent)}" if named.parent is not None else None
        digest = Digest(body, request.body, seed_of(scope, self._seed), self._prefix_seed(tenant, body.model))
        call = Call(
            kind=kind,
            request=request,
            tenant=tenant.name,
            session="",
            task="",
            step="",
            model=body.model,
            stream=body.stream,
            workflow=f"{tenant.name}/{_escaped(named.workflow)}" if named.workflow is not None else "",
            gap_kind="tool" if ends_with_tool(body) else "user",
            final=bool(named.final),
            hints=named.hints,
            retryable=kind in _STATELESS or (kind is Kind.RESPONSES and body.store is False),
            max_output_tokens=body.max_output_tokens,
            priority=_allowed(named.priority or 0, tenant),
        )
        call.body = self._body_of(call, body, named, tenant)
        if digest.prefix_size >= _MIN_PREFIX_BYTES:
            call.prefix = f"{digest.prefix:016x}"
            if self.settings.infer_workflow and not call.workflow:
                call.workflow = f"{tenant.name}/~{call.prefix}"
        task = named.task or named.root
        return Reading(
            call,
            tenant,
            digest.size,
            body.previous_response_id or "",
            digest,
            scope,
            session,
            parent,
            f"{tenant.name}/{_escaped(task)}" if task is not None else None,
            named.deadline_s,
            retrying=retrying,
        )

    def _body_of(self, call: Call, body: Body, named: Named | None, tenant: Tenant) -> bytes:
        """The body to send: the client's own, unless usage is to be asked for or the tenant is salted."""
        raw = call.request.body
        added: dict[str, bytes] = {}
        streams_usage = call.stream and call.kind in (Kind.CHAT, Kind.COMPLETIONS)
        if self.settings.ask_usage and streams_usage and body.asks_usage is None:
            added["stream_options"] = _USAGE
            call.wants_usage = False
        if tenant.cache_salt and call.kind in (Kind.CHAT, Kind.COMPLETIONS, Kind.RESPONSES):
            own = (named.cache_salt if named is not None else None) or ""
            salt = hmac.digest(self.secret, f"{tenant.name}/{own}".encode("utf-8", "surrogatepass"), "sha256").hex()
            added["cache_salt"] = b'"%s"' % salt[:32].encode()
        return with_fields(raw, added) if added else raw

    def _prefix_seed(self, tenant: Tenant, model: str) -> int:
        """What a prefix's identity starts from: equal prefixes are one only in one model, and under one salt."""
        seed = xxh3(model.encode("utf-8", "surrogatepass"), self._seed)
        return xxh3(tenant.name.encode(), seed) if tenant.cache_salt else seed

    def _believed(self, tenant: Tenant, named: Named) -> Tenant:
        """The tenant that the call names, where anybody may name one."""
        if named.tenant is None or self.tenants.keyed or not self.settings.trust_tenant_header:
            return tenant
        return self.tenant_named(quote(named.tenant, safe=""))

    def tenant_named(self, name: str) -> Tenant:
        """A tenant that is only a name; the default one, where too many names are known already."""
        known = self._named_tenants.get(name)
        if known is None:
            if len(self._named_tenants) >= self.settings.max_named_tenants:
                return DEFAULT_TENANT
            known = self._named_tenants[name] = Tenant(name)
        return known

    @staticmethod
    def _check_ours(named: Named) -> None:
        """Our own fields are a contract: what cannot be read there is refused, not ignored."""
        for convention, where, why in named.ignored:
            if convention == "saga" and where.endswith(("deadline-s", "deadline_s")):
                shown = where if "." in where else "X-Saga-Deadline-S"
                raise Refused(
                    400,
                    f"'{shown}' must be a number of seconds above 0: {why}",
                    code="invalid_value",
                    param=shown,
                )


def _alone(kind: Kind, request: Request, tenant: Tenant, body: Body | None = None) -> Reading:
    """A call that no session owns: passed through, an embedding, or a batch of prompts."""
    call = Call(
        kind=kind,
        request=request,
        tenant=tenant.name,
        session="",
        task="",
        step="",
        gap_kind="user",
        final=True,
        retryable=kind in _STATELESS or request.method in _SAFE_METHODS,
        body=request.body,
    )
    if body is None:
        asked = request.path.startswith(_RESPONSES)
        previous = request.path[len(_RESPONSES) :].partition("/")[0] if asked else ""
        return Reading(call, tenant, previous=previous)
    call.model = body.model
    call.stream = body.stream
    call.max_output_tokens = body.max_output_tokens
    return Reading(call, tenant, body.size)


def _allowed(priority: int, tenant: Tenant) -> int:
    """The class that a call may have: anybody may stand back (above 0), only a tenant who may goes first (below)."""
    return max(-MAX_CLASS if tenant.may_go_first else 0, min(MAX_CLASS, priority))


def _escaped(name: str) -> str:
    """A client's name, with the gateway's own mark taken out of it."""
    return name.replace("%", "%25").replace("~", "%7E") if "~" in name or "%" in name else name


def _retrying(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the client says that it repeats itself (the openai and anthropic SDKs count their attempts)."""
    attempts = headers.get(b"x-stainless-retry-count")
    return attempts is not None and attempts.strip() not in (b"", b"0")


def with_fields(body: bytes, added: dict[str, bytes]) -> bytes:
    """A JSON object with top-level fields set to raw JSON values; everything else stays as it was written.

    body: a valid JSON object that is not empty. Fields that are there already are replaced.
    """
    if not any(b'"%s"' % name.encode() in body for name in added):
        fields = b"".join(b',"%s":%s' % (name.encode(), value) for name, value in added.items())
        return body.rstrip(_JSON_SPACE)[:-1] + fields + b"}"
    said = _ANY_OBJECT.decode(body)
    for name, value in added.items():
        said[name] = Raw(value)
    return msgspec.json.encode(said)
