"""Who may call, how much, and with what weight.

Tenants come from a TOML file that holds hashes of keys, never keys:

    [[tenant]]
    name = "research"
    key_sha256 = ["<64 hex digits>"]
    weight = 2.0
    max_calls_in_flight = 64
    max_tokens_per_min = 2_000_000
    cache_salt = true
    may_go_first = true

Without a file there is one tenant, "default", and nobody is asked for a key; whether that is allowed on the address
being served is for the server to say. It refuses to know sessions, workers and bodies.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from saga.errors import UsageError
from saga.gateway.contracts import Refused
from saga.gateway.settings import DEFAULT_TENANT, Tenant

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_FLAGS: Final = ("cache_salt", "may_go_first")
_FIELDS: Final = ("name", "key_sha256", "weight", "max_calls_in_flight", "max_tokens_per_min", *_FLAGS)


class _Use:
    """What a tenant uses now: calls in flight, and a bucket of tokens that refills within a minute."""

    __slots__ = ("at_s", "in_flight", "tokens")

    def __init__(self) -> None:
        self.in_flight = 0
        self.tokens = 0.0
        self.at_s = float("-inf")


class Tenants:
    """All tenants: who a key belongs to, and whether one more call is within the limits."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._tenants: dict[str, Tenant] = {DEFAULT_TENANT.name: DEFAULT_TENANT}
        self._keys: tuple[tuple[bytes, Tenant], ...] = ()
        self._uses: dict[str, _Use] = {}
        self._keyed = path is not None
        if path is not None:
            self._load(path)

    @property
    def keyed(self) -> bool:
        """Whether callers must show a key."""
        return self._keyed

    def get(self, name: str) -> Tenant | None:
        """The tenant of that name."""
        return self._tenants.get(name)

    def replace(self, tenants: Iterable[Tenant], *, keyed: bool) -> None:
        """Take over tenants that another process has read, instead of a file's."""
        self._keyed = keyed
        self._tenants = {tenant.name: tenant for tenant in tenants}
        self._keys = tuple((key, tenant) for tenant in self._tenants.values() for key in tenant.keys)

    def all(self) -> tuple[Tenant, ...]:
        """Every tenant, by name."""
        return tuple(self._tenants[name] for name in sorted(self._tenants))

    def reload(self) -> bool:
        """Read the file again if it changed; whether it did.

        Raises UsageError where it is bad, and keeps the tenants that were. The caller decides how often; a call costs
        one stat.
        """
        if self._path is None or self._stamped(self._path) == self._stamp:
            return False
        self._load(self._path)
        return True

    def authenticate(self, authorization: bytes | None, api_key: bytes | None = None) -> Tenant:
        """The tenant of `Authorization: Bearer <key>` or `x-api-key: <key>`; raises Refused (401).

        Every known hash is compared, in constant time each. Cost: O(keys).
        """
        if not self._keyed:
            return DEFAULT_TENANT
        key = api_key
        if authorization is not None:
            scheme, _, value = authorization.strip().partition(b" ")
            key = value.strip() if scheme.lower() == b"bearer" else None
        if not key:
            raise Refused(
                401,
                "no API key was given: send it as 'Authorization: Bearer <key>'",
                kind="authentication_error",
                code="missing_api_key",
            )
        digest = hashlib.sha256(key).digest()
        found: Tenant | None = None
        for known, tenant in self._keys:
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None:
            raise Refused(401, "the API key is not known", kind="authentication_error", code="invalid_api_key")
        return found

    def begin(self, tenant: Tenant, tokens: int, at_s: float) -> None:
        """Count a call of about `tokens` prompt tokens; raises Refused (429, with a time to wait) over the limits."""
        use = self._uses.get(tenant.name)
        if use is None:
            use = self._uses[tenant.name] = _Use()
        if tenant.max_calls_in_flight is not None and use.in_flight >= tenant.max_calls_in_flight:
            raise _limited(f"tenant {tenant.name!r} has {use.in_flight} calls in flight, the most it may have", 1.0)
        if tenant.max_tokens_per_min is not None:
            rate = tenant.max_tokens_per_min / 60.0
            use.tokens = max(0.0, use.tokens - max(0.0, at_s - use.at_s) * rate)
            use.at_s = at_s
            if use.tokens > 0.0 and use.tokens + tokens > tenant.max_tokens_per_min:
                wait_s = min(60.0, (use.tokens + tokens - tenant.max_tokens_per_min) / rate)
                raise _limited(f"tenant {tenant.name!r} is over {tenant.max_tokens_per_min} tokens per minute", wait_s)
            use.tokens += tokens
        use.in_flight += 1

    def end(self, name: str, tokens: int) -> None:
        """A call is over, and `tokens` (its output, and what the estimate was short of) count too."""
        use = self._uses.get(name)
        if use is not None:
            use.in_flight = max(0, use.in_flight - 1)
            use.tokens = max(0.0, use.tokens + tokens)
            if use.in_flight == 0 and use.tokens == 0.0:
                del self._uses[name]

    def in_flight(self, name: str) -> int:
        """Calls of a tenant that have begun and not ended."""
        use = self._uses.get(name)
        return use.in_flight if use is not None else 0

    @staticmethod
    def _stamped(path: Path) -> tuple[int, int] | None:
        try:
            stat = path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def _load(self, path: Path) -> None:
        self._stamp = self._stamped(path)
        try:
            said = tomllib.loads(path.read_text("utf-8"))
        except OSError as why:
            raise UsageError(f"{path}: the tenants' file cannot be read: {why.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as why:
            raise UsageError(f"{path}: no valid TOML: {why}") from None
        entries = said.get("tenant")
        if not isinstance(entries, list) or not entries:
            raise UsageError(f"{path}: no [[tenant]] in it; each needs a name and key_sha256")
        tenants = [_tenant(path, place, entry) for place, entry in enumerate(entries, 1)]
        self._tenants = {tenant.name: tenant for tenant in tenants}
        if len(self._tenants) != len(tenants):
            raise UsageError(f"{path}: two tenants have the same name")
        self._keys = tuple((key, tenant) for tenant in tenants for key in tenant.keys)
        if len({key for key, _ in self._keys}) != len(self._keys):
            raise UsageError(f"{path}: two tenants share a key")


def _limited(message: str, wait_s: float) -> Refused:
    return Refused(429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=max(0.1, wait_s))


def _tenant(path: Path, place: int, said: Any) -> Tenant:  # noqa: ANN401 - whatever the file holds
    where = f"{path}: tenant {place}"
    if not isinstance(said, dict):
        raise UsageError(f"{where}: not a table")
    for name in said:
        if name not in _FIELDS:
            raise UsageError(f"{where}: unknown field {name!r}; known: {', '.join(_FIELDS)}")
    name = said.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"{where}: name is {name!r}, not 1 to 64 letters, digits, dots, dashes or underscores")
    keys = said.get("key_sha256", [])
    keys = [keys] if isinstance(keys, str) else keys
    if not keys or not all(isinstance(key, str) and _HEX.fullmatch(key.lower()) for key in keys):
        raise UsageError(f"{where}: key_sha256 must be one or more SHA-256 hashes, 64 hex digits each")
    weight = said.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1e6:
        raise UsageError(f"{where}: weight is {weight!r}, not a number above 0")
    for flag in _FLAGS:
        if not isinstance(said.get(flag, False), bool):
            raise UsageError(f"{where}: {flag} is {said[flag]!r}, not true or false")
    return Tenant(
        name,
        tuple(bytes.fromhex(key) for key in keys),
        float(weight),
        _most(where, said, "max_calls_in_flight"),
        _most(where, said, "max_tokens_per_min"),
        cache_salt=said.get("cache_salt", False),
        may_go_first=said.get("may_go_first", False),
    )


def _most(where: str, said: dict[str, Any], name: str) -> int | None:
    limit = said.get(name)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise UsageError(f"{where}: {name} is {limit!r}, not a whole number above 0")
    return limit
