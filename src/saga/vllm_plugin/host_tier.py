"""The host tier of this engine as the scheduler sees it: whose chunks are there, and copies while a session is idle.

vLLM stores what a call computes as it computes it, and loads what a call needs when it comes. Two things are added:

    offload    what a session has on the device and the tier has lost is stored again, when the coordinator says so and
               whenever its retention ends (`PausedLast` lets the chunks of sessions that are on the device go first)
    prefetch   what a session has in the tier is loaded before its call comes

Both are *errands*: calls that this class puts into vLLM's queue itself, with the session's own tokens as far as they
are held and one token more, to compute. vLLM hits, loads and stores as for any call; the errand is answered to nobody,
and its blocks are the session's. Errands never wait for room behind calls: none is sent to load while a call waits, and
only a few are under way. A prefix that is carried over from another worker is loaded from a second tier behind the
first by vLLM; where that is dearer than prefilling (`moving.pays`) the call is told to leave that tier alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_offload.base import make_offload_key
from vllm.v1.request import Request

from saga.commands import Standing
from saga.errors import UsageError
from saga.vllm_plugin import compatibility
from saga.vllm_plugin.contracts import Outcome
from saga.vllm_plugin.control import Control
from saga.vllm_plugin.moving import Link, pays
from saga.vllm_plugin.offload import SagaTierPolicy, tier_policy
from saga.vllm_plugin.reports import leading_blocks
from saga.vllm_plugin.sessions import Session
from saga.vllm_plugin.tier import MAX_ERRANDS, NoTier, Tier

_ERRAND = "saga-errand-"
_BEFORE_ALL = -1  # places of calls are whole numbers from 0 on
_PAUSED = Standing.PAUSED.value
_HOST_ONLY = {"kv_load_tiers": [{"medium": "cpu"}]}


class HostTier:
    """A `Tier`. offloading: vLLM's `OffloadingConnectorScheduler`, its only KV cache group attending fully."""

    def __init__(self, control: Control, scheduler: Any, offloading: Any, policy: SagaTierPolicy) -> None:  # noqa: ANN401
        self._control = control
        self._scheduler = scheduler
        self._offloading = offloading
        self._policy = policy
        (self._group,) = offloading.config.kv_group_configs
        self._chunk_tokens: int = self._group.tokens_per_chunk
        self._blocks_per_chunk: int = offloading.config.blocks_per_chunk
        self._carrying = _Carrying.read(scheduler)
        self._session_of: dict[str, Session] = {}
        self._errands: dict[str, Session] = {}
        self._leaving: list[str] = []
        self._num_errands = 0
        self._answered = False
        policy.owner_of = self._session_of.get
        policy.now_s = control.now_s

    # What is here

    @property
    def num_blocks(self) -> int:
        """Its size, device blocks."""
        return int(self._policy.cache_capacity) * self._blocks_per_chunk

    @property
    def used_blocks(self) -> int:
        """How much of it is taken."""
        return len(self._policy.chunks) * self._blocks_per_chunk

    def held_tokens(self, session: Session) -> int:
        """Tokens from the front of its context that lie here. O(log tokens)."""
        count = leading_blocks(self._num_chunks(session), lambda at: self._holds(session, at))
        return count * self._chunk_tokens

    def _num_chunks(self, session: Session) -> int:
        return len(session.block_hashes) // int(self._group.hashes_per_chunk)

    def _holds(self, session: Session, at: int) -> bool:
        """Whether chunk `at` of its context can be loaded."""
        block_hash = session.block_hashes[(at + 1) * self._group.hashes_per_chunk - 1]
        chunk = self._policy.get(make_offload_key(block_hash, self._group.group_idx))
        return chunk is not None and bool(chunk.is_ready)

    # Calls and sessions

    def arriving(self, request: Any, session: Session | None) -> None:  # noqa: ANN401
        """A call is about to enter vLLM's queue."""
        if session is not None:
            self._session_of[request.request_id] = session
        if self._carrying is not None and not self._carrying.pays(request.num_prompt_tokens):
            request.kv_transfer_params = {**_HOST_ONLY, **(request.kv_transfer_params or {})}

    def ended(self, request: Any) -> None:  # noqa: ANN401
        """A call has ended; vLLM lets go of it with its next step, and until then is asked whose it was."""
        if request.request_id in self._session_of:
            self._leaving.append(request.request_id)

    def standing_changed(self, session: Session) -> None:
        """Its chunks leave earlier or later now; at the end of its retention the tier gets what it lacks."""
        self._policy.order.rekey(session)
        if session.standing == _PAUSED and session.idle:
            self.offload(session)

    # Errands

    def offload(self, session: Session) -> tuple[Outcome, str]:
        """Store what the device has of it and the tier has not."""
        if not session.idle:
            return Outcome.ACCEPTED, "a call of it is here: what it computes is stored at once"
        whole = self._num_chunks(session) * self._chunk_tokens
        device = self._whole_chunks(self._control.device_tokens(session))
        if self.held_tokens(session) < device:
            why_not = self._send(session, device, new_tokens=0)
            if why_not:
                return Outcome.REFUSED, why_not
        held = max(device, self.held_tokens(session))
        return _as_far_as(held, whole, "neither device nor tier holds it")

    def prefetch(self, session: Session) -> tuple[Outcome, str]:
        """Load what the tier has of it behind what the device has."""
        if not session.idle:
            return Outcome.ACCEPTED, "a call of it is here"
        num_chunks = self._num_chunks(session)
        device = self._whole_chunks(self._control.device_tokens(session))
        end = first = device // self._chunk_tokens
        while end < num_chunks and self._holds(session, end):
            end += 1
        held = end * self._chunk_tokens
        if end > first:
            if any(call.waiting and not call.hints.wake for call in self._control.calls):
                return Outcome.REFUSED, "calls wait for the device"
            why_not = self._send(session, held, new_tokens=held - device)
            if why_not:
                return Outcome.REFUSED, why_not
        return _as_far_as(held, num_chunks * self._chunk_tokens, "the tier does not hold it")

    def errand_of(self, request: Any) -> Session | None:  # noqa: ANN401
        """The session that a request runs for that is no call, which is over once it has finished."""
        name = request.request_id
        session = self._errands.get(name)
        if session is None or not request.is_finished():
            return session
        del self._errands[name]
        self._answered = True
        self.ended(request)
        return session if self._control.sessions.get(session.key) is session else None

    def strip(self, outputs: Mapping[int, Any]) -> None:
        """Take what errands brought out of what vLLM sends to its clients."""
        if self._leaving:
            self._let_go()
        if not self._answered and not self._errands:
            return
        self._answered = False
        for client in outputs.values():
            client.outputs = [each for each in client.outputs if not each.request_id.startswith(_ERRAND)]
            if client.finished_requests:
                client.finished_requests = {name for name in client.finished_requests if not name.startswith(_ERRAND)}

    def _let_go(self) -> None:
        """Forget whose the calls were that vLLM has let go of."""
        known = self._offloading._req_status  # noqa: SLF001
        for name in self._leaving:
            if name not in known:
                self._session_of.pop(name, None)
        self._leaving = [name for name in self._leaving if name in known]

    def _whole_chunks(self, tokens: int) -> int:
        return tokens - tokens % self._chunk_tokens

    def _send(self, session: Session, held_tokens: int, new_tokens: int) -> str:
        """Put an errand for the first held_tokens of its context into vLLM's queue; why not, or ""."""
        if not session.token_ids:
            return "its tokens are forgotten"
        if len(self._errands) >= MAX_ERRANDS:
            return f"{MAX_ERRANDS} errands are under way"
        if session in self._errands.values():
            return "an errand of it is under way"
        held_tokens = min(held_tokens, self._whole_chunks(self._scheduler.max_model_len - 2))
        block_tokens = self._control.block_tokens
        num_free = self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        num_own = (held_tokens - new_tokens) // block_tokens
        if new_tokens // block_tokens + 1 > num_free - num_own:
            return "the device has no room"
        prompt = list(session.token_ids[: held_tokens + 1])
        if len(prompt) == held_tokens:
            prompt.append(prompt[-1])
        hashes = list(session.block_hashes[: held_tokens * self._group.hashes_per_chunk // self._chunk_tokens])
        self._num_errands += 1
        request = Request(
            request_id=f"{_ERRAND}{self._num_errands}",
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(max_tokens=1, temperature=0.0, detokenize=False),
            pooling_params=None,
            lora_request=session.lora,  # type: ignore[arg-type, unused-ignore]
            cache_salt=session.key.salt or None,
            priority=_BEFORE_ALL,
            block_hasher=lambda request: hashes[len(request.block_hashes) :],
        )
        self._errands[request.request_id] = self._session_of[request.request_id] = session
        Scheduler.add_request(self._scheduler, request)
        return ""


class _Carrying:
    """What it costs to load from the tier behind the first; made only where there is one and its rate was given."""

    def __init__(self, link: Link, bytes_per_token: int, prefill_tokens_per_s: float) -> None:
        self._link = link
        self._bytes_per_token = bytes_per_token
        self._prefill_tokens_per_s = prefill_tokens_per_s

    @classmethod
    def read(cls, scheduler: Any) -> _Carrying | None:  # noqa: ANN401
        """From `kv_connector_extra_config`. Raises UsageError for a rate that is none."""
        extra = scheduler.vllm_config.kv_transfer_config.kv_connector_extra_config
        if not extra.get("secondary_tiers") or "saga_carry_bytes_per_s" not in extra:
            return None
        rates = [extra.get(name, 0.0) for name in ("saga_carry_bytes_per_s", "saga_prefill_tokens_per_s")]
        for rate in rates:
            if not isinstance(rate, int | float) or isinstance(rate, bool) or rate < 0:
                raise UsageError(f"kv_connector_extra_config: rate {rate!r} should be a number of at least 0")
        cache = scheduler.kv_cache_config
        bytes_per_block = sum(tensor.size for tensor in cache.kv_cache_tensors) // cache.num_blocks
        return cls(Link(rates[0]), bytes_per_block // scheduler.block_size, rates[1])

    def pays(self, num_tokens: int) -> bool:
        """Whether a prompt of so many tokens should come over rather than be computed."""
        return pays(num_tokens, self._bytes_per_token, self._link, self._prefill_tokens_per_s)


def _as_far_as(held: int, whole: int, gone: str) -> tuple[Outcome, str]:
    if not held:
        return Outcome.MISSING, gone
    if held < whole:
        return Outcome.CLIPPED, f"{held} of {whole} tokens are left"
    return Outcome.ACCEPTED, ""


def tier_of(scheduler: Any, control: Control) -> Tier:  # noqa: ANN401
    """The tier of a scheduler whose vLLM runs an `OffloadingConnector` with SAGA's policy, else none.

    Raises UsageError for a vLLM that lacks what it relies on.
    """
    offloading = getattr(getattr(scheduler, "connector", None), "connector_scheduler", None)
    policy = tier_policy(getattr(offloading, "manager", None))
    if offloading is None or policy is None:
        return NoTier()
    compatibility.check_scheduler(scheduler, compatibility.TIER_ATTRIBUTES)
    groups = offloading.config.kv_group_configs
    if len(groups) != 1 or groups[0].sliding_window_size_in_chunks is not None:
        return NoTier()
    return HostTier(control, scheduler, offloading, policy)
