"""Whose call is it: tenant, task, session and step of a request, before anything is scheduled.

    key -> tenant; body -> what it asks; conventions -> what it calls itself; content -> what it belongs to

Names live inside their tenant: a session is `tenant/name`, the tenant's part holds no slash, and what the gateway makes
up is marked with a tilde that no client's name can hold. It refuses to know workers, sockets and decisions.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import quote

import msgspec
from msgspec import Raw
from xxhash import xxh3_64_intdigest as xxh3

from saga.gateway.answers import TokenEstimator
from saga.gateway.body import Body, parse
from saga.gateway.contracts import Answer, Call, Kind, Refused, Request
from saga.gateway.conversations import Conversations, ConversationSettings, Digest, Placement, ends_with_tool
from saga.gateway.tenants import DEFAULT_TENANT, Tenant, Tenants
from saga.wire import Named, Resolver

_KINDS: Final = {
    "/v1/chat/completions": Kind.CHAT,
    "/v1/completions": Kind.COMPLETIONS,
    "/v1/responses": Kind.RESPONSES,
    "/v1/messages": Kind.MESSAGES,
    "/v1/embeddings": Kind.EMBEDDINGS,
}
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
class IdentitySettings:
    """How names are made.

    ask_usage: ask engines for token counts on streams whose client did not. trust_tenant_header: believe a tenant
    named by the client, where no keys are asked for. infer_workflow: calls with the same system prompt and tools are of
    one kind where none is named. max_response_ids, max_pending, max_named_tenants: caps. secret: seeds salts and
    hashes; give every process of a fleet the same.
    """

    ask_usage: bool = True
    trust_tenant_header: bool = True
    infer_workflow: bool = True
    max_response_ids: int = 200_000
    max_pending: int = 100_000
    max_named_tenants: int = 1_000
    secret: bytes = b""


@dataclass(slots=True)
class _Pending:
    """A call that was identified and not yet answered."""

    tenant: str
    num_bytes: int
    tokens: int


def kind_of(method: str, path: str) -> Kind:
    """What a route is about."""
    return _KINDS.get(path, Kind.OTHER) if method == "POST" else Kind.OTHER


class GatewayIdentity:
    """Whose call is it? One per process; not thread-safe; never blocks.

    Every identified call must be handed to `answered` once, also where it failed, was refused or cancelled (with an
    answer that is not complete): limits and conversations count on it.
    """

    def __init__(
        self,
        tenants: Tenants | None = None,
        resolver: Resolver | None = None,
        conversations: Conversations | None = None,
        estimator: TokenEstimator | None = None,
        settings: IdentitySettings | None = None,
    ) -> None:
        self.settings = settings if settings is not None else IdentitySettings()
        self._secret = self.settings.secret or secrets.token_bytes(32)
        self.tenants = tenants if tenants is not None else Tenants()
        self.resolver = resolver if resolver is not None else Resolver()
        if conversations is None:
            conversations = Conversations(ConversationSettings(secret=self._secret))
        self.conversations = conversations
        self.estimator = estimator if estimator is not None else TokenEstimator()
        self._prefix_seed = xxh3(self._secret)
        self._run = secrets.token_hex(4)
        self._num_steps = 0
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._responses: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._named_tenants: dict[str, Tenant] = {}
        self._words: dict[_Words, Named] = {}

    def identify(self, request: Request, at_s: float) -> Call:
        """The call; raises Refused (400, 401, 429). at_s: the event loop's clock. Cost: O(bytes of the body)."""
        headers = dict(reversed(request.headers))  # of equal names the first counts
        tenant = self.tenants.authenticate(headers.get(b"authorization"), headers.get(b"x-api-key"))
        kind = kind_of(request.method, request.path)
        if kind is Kind.OTHER:
            return self._alone(kind, request, tenant, at_s)
        encoding = headers.get(b"content-encoding")
        if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
            raise Refused(400, "a compressed body is not read here: send it as it is", code="bad_encoding")
        body = parse(kind, request.body)
        named = self._said(request, body)
        self._check_ours(named)
        tenant = self._believed(tenant, named)
        if kind is Kind.EMBEDDINGS or not body.single:
            return self._alone(kind, request, tenant, at_s, body)
        return self._call(kind, request, body, named, tenant, at_s, retrying=_retrying(headers))

    def answered(self, call: Call, answer: Answer, at_s: float, worker: str = "") -> None:
        """The call is over. worker: who answered it, for the ids that lead back there."""
        pending = self._pending.pop(call.step, None)
        if pending is None:
            return
        spent = answer.output_tokens or 0
        if answer.prompt_tokens is not None and answer.complete:
            spent += answer.prompt_tokens - pending.tokens
            if pending.num_bytes:
                self.estimator.learn(call.model, pending.num_bytes, answer.prompt_tokens)
        self.tenants.end(pending.tenant, spent)
        self.conversations.answered(call.session, call.step, answer, at_s)
        if answer.response_id is not None and call.kind is Kind.RESPONSES and answer.complete:
            self._responses[f"{call.tenant}/{answer.response_id}"] = (call.session, worker)
            if len(self._responses) > self.settings.max_response_ids:
                self._responses.popitem(last=False)

    def _said(self, request: Request, body: Body) -> Named:
        """What the call says about itself. The calls of a session do so in the same words, which are read once.

        Words that cannot be read are not remembered, so that each time counts; long ones are not either.
        """
        words = (self.resolver.heard(request.headers), body.extensions)
        named = self._words.get(words)
        if named is None:
            named = self.resolver.resolve(words[0], body.fields)
            num_bytes = sum(len(name) + len(value) for part in words for name, value in part)
            if not named.ignored and num_bytes <= _MAX_WORDS_BYTES:
                if len(self._words) >= _MAX_WORDS:
                    self._words.clear()
                self._words[words] = named
        return named

    def _call(
        self, kind: Kind, request: Request, body: Body, named: Named, tenant: Tenant, at_s: float, *, retrying: bool
    ) -> Call:
        scope = f"{tenant.name}/"
        session = parent = None
        if named.session is not None:
            inside = scope + _escaped(named.session)
            scope = inside
            if not named.weak:
                session = inside
                parent = f"{tenant.name}/{_escaped(named.parent)}" if named.parent is not None else None
        per_token = self.estimator.bytes_per_token(body.model)
        known = None
        if body.previous_response_id is not None:
            known = self._responses.get(f"{tenant.name}/{body.previous_response_id}")
        digest = Digest(body, request.body, self.conversations.seed(scope), self._seed_of(tenant, body.model))
        tokens = self.estimator.tokens(body.model, digest.size)
        self.tenants.begin(tenant, tokens, at_s)
        placement = self.conversations.place(
            digest,
            scope=scope,
            named=session,
            parent=parent,
            model=body.model,
            at_s=at_s,
            bytes_per_token=per_token,
            retrying=retrying,
            after=known[0] if known is not None and session in (None, known[0]) else None,
        )
        step = self._step(tenant.name, tokens, 0 if known is not None else digest.size)
        self.conversations.began(placement, digest, step, body.model, at_s)
        call = self._named_call(kind, request, body, named, tenant, placement, step)
        call.pinned = known[1] if known is not None else ""
        call.deadline_s = at_s + named.deadline_s if named.deadline_s is not None else None
        if digest.prefix_size >= _MIN_PREFIX_BYTES:
            call.prefix = f"{digest.prefix:016x}"
            call.prefix_tokens = min(self.estimator.tokens(body.model, digest.prefix_size), call.prompt_tokens)
            if self.settings.infer_workflow and not call.workflow:
                call.workflow = f"{tenant.name}/~{call.prefix}"
        return call

    def _named_call(
        self, kind: Kind, request: Request, body: Body, named: Named, tenant: Tenant, placement: Placement, step: str
    ) -> Call:
        conversation = placement.conversation
        if named.task is not None or named.root is not None:
            conversation.task = f"{tenant.name}/{_escaped(named.task or named.root or '')}"
        common = placement.common_tokens
        call = Call(
            kind=kind,
            request=request,
            tenant=tenant.name,
            session=conversation.session,
            task=conversation.task,
            step=step,
            model=body.model,
            stream=body.stream,
            parent=conversation.parent,
            workflow=f"{tenant.name}/{_escaped(named.workflow)}" if named.workflow is not None else "",
            prompt_tokens=placement.prompt_tokens,
            common_tokens=min(common, placement.prompt_tokens) if common is not None else None,
            gap_kind="tool" if ends_with_tool(body) else "user",
            final=bool(named.final),
            hints=named.hints,
            retryable=kind in _STATELESS or (kind is Kind.RESPONSES and body.store is False),
            retry_of=placement.retry_of,
            max_output_tokens=body.max_output_tokens,
        )
        call.body = self._body_of(call, body, named, tenant)
        return call

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
            salt = hmac.digest(self._secret, f"{tenant.name}/{own}".encode("utf-8", "surrogatepass"), "sha256").hex()
            added["cache_salt"] = b'"%s"' % salt[:32].encode()
        return with_fields(raw, added) if added else raw

    def _alone(self, kind: Kind, request: Request, tenant: Tenant, at_s: float, body: Body | None = None) -> Call:
        """A call that no session owns: passed through, an embedding, or a batch of prompts."""
        tokens = self.estimator.tokens(body.model, body.size) if body is not None else 0
        self.tenants.begin(tenant, tokens, at_s)
        step = self._step(tenant.name, tokens, 0)
        session = f"{tenant.name}/~{step}"
        call = Call(
            kind=kind,
            request=request,
            tenant=tenant.name,
            session=session,
            task=session,
            step=step,
            prompt_tokens=max(1, tokens),
            gap_kind="user",
            final=True,
            retryable=kind in _STATELESS or request.method in _SAFE_METHODS,
            body=request.body,
        )
        if body is not None:
            call.model = body.model
            call.stream = body.stream
            call.max_output_tokens = body.max_output_tokens
            call.body = self._body_of(call, body, None, tenant)
        elif request.path.startswith(_RESPONSES):
            known = self._responses.get(f"{tenant.name}/{request.path[len(_RESPONSES) :].partition('/')[0]}")
            call.pinned = known[1] if known is not None else ""
        return call

    def _step(self, tenant: str, tokens: int, num_bytes: int) -> str:
        self._num_steps += 1
        step = f"{self._run}-{self._num_steps:x}"
        self._pending[step] = _Pending(tenant, num_bytes, tokens)
        if len(self._pending) > self.settings.max_pending:
            _, lost = self._pending.popitem(last=False)
            self.tenants.end(lost.tenant, 0)
        return step

    def _seed_of(self, tenant: Tenant, model: str) -> int:
        """What a prefix's identity starts from: equal prefixes are one only in one model, and under one salt."""
        seed = xxh3(model.encode("utf-8", "surrogatepass"), self._prefix_seed)
        return xxh3(tenant.name.encode(), seed) if tenant.cache_salt else seed

    def _believed(self, tenant: Tenant, named: Named) -> Tenant:
        """The tenant that the call names, where anybody may name one."""
        if named.tenant is None or self.tenants.keyed or not self.settings.trust_tenant_header:
            return tenant
        name = quote(named.tenant, safe="")
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
