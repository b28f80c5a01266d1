from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Standing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STANDING_UNSPECIFIED: _ClassVar[Standing]
    STANDING_ACTIVE: _ClassVar[Standing]
    STANDING_PAUSED: _ClassVar[Standing]
    STANDING_ENDED: _ClassVar[Standing]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_ACCEPTED: _ClassVar[Outcome]
    OUTCOME_CLIPPED: _ClassVar[Outcome]
    OUTCOME_MISSING: _ClassVar[Outcome]
    OUTCOME_REFUSED: _ClassVar[Outcome]
STANDING_UNSPECIFIED: Standing
STANDING_ACTIVE: Standing
STANDING_PAUSED: Standing
STANDING_ENDED: Standing
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_ACCEPTED: Outcome
OUTCOME_CLIPPED: Outcome
OUTCOME_MISSING: Outcome
OUTCOME_REFUSED: Outcome

class FromEngine(_message.Message):
    __slots__ = ("hello", "report", "answer")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    report: Report
    answer: Answer
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class ToEngine(_message.Message):
    __slots__ = ("welcome", "directive")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    directive: Directive
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., directive: _Optional[_Union[Directive, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("worker", "url", "model", "block_tokens", "num_blocks", "num_host_blocks", "max_running", "prefill_tokens_per_s", "load_tokens_per_s", "move_tokens_per_s", "engine_version", "plugin_version")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_HOST_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    LOAD_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    MOVE_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    worker: str
    url: str
    model: str
    block_tokens: int
    num_blocks: int
    num_host_blocks: int
    max_running: int
    prefill_tokens_per_s: float
    load_tokens_per_s: float
    move_tokens_per_s: float
    engine_version: str
    plugin_version: str
    def __init__(self, worker: _Optional[str] = ..., url: _Optional[str] = ..., model: _Optional[str] = ..., block_tokens: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_host_blocks: _Optional[int] = ..., max_running: _Optional[int] = ..., prefill_tokens_per_s: _Optional[float] = ..., load_tokens_per_s: _Optional[float] = ..., move_tokens_per_s: _Optional[float] = ..., engine_version: _Optional[str] = ..., plugin_version: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("report_every_s",)
    REPORT_EVERY_S_FIELD_NUMBER: _ClassVar[int]
    report_every_s: float
    def __init__(self, report_every_s: _Optional[float] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("running", "waiting", "used_blocks", "retained_blocks", "used_host_blocks", "sessions", "finished", "ignored", "prefill_tokens_per_s")
    class IgnoredEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RETAINED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    USED_HOST_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    used_blocks: int
    retained_blocks: int
    used_host_blocks: int
    sessions: _containers.RepeatedCompositeFieldContainer[Held]
    finished: _containers.RepeatedCompositeFieldContainer[Finished]
    ignored: _containers.ScalarMap[str, int]
    prefill_tokens_per_s: float
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., used_blocks: _Optional[int] = ..., retained_blocks: _Optional[int] = ..., used_host_blocks: _Optional[int] = ..., sessions: _Optional[_Iterable[_Union[Held, _Mapping]]] = ..., finished: _Optional[_Iterable[_Union[Finished, _Mapping]]] = ..., ignored: _Optional[_Mapping[str, int]] = ..., prefill_tokens_per_s: _Optional[float] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("session", "device_tokens", "host_tokens")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HOST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    session: str
    device_tokens: int
    host_tokens: int
    def __init__(self, session: _Optional[str] = ..., device_tokens: _Optional[int] = ..., host_tokens: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("step", "session", "prompt_tokens", "output_tokens", "cached_tokens", "host_tokens", "preemptions")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HOST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    step: str
    session: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    host_tokens: int
    preemptions: int
    def __init__(self, step: _Optional[str] = ..., session: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., host_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ...) -> None: ...

class Directive(_message.Message):
    __slots__ = ("id", "retain", "release", "offload", "prefetch", "prioritize")
    ID_FIELD_NUMBER: _ClassVar[int]
    RETAIN_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    OFFLOAD_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_FIELD_NUMBER: _ClassVar[int]
    PRIORITIZE_FIELD_NUMBER: _ClassVar[int]
    id: int
    retain: Retain
    release: Release
    offload: Offload
    prefetch: Prefetch
    prioritize: Prioritize
    def __init__(self, id: _Optional[int] = ..., retain: _Optional[_Union[Retain, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., offload: _Optional[_Union[Offload, _Mapping]] = ..., prefetch: _Optional[_Union[Prefetch, _Mapping]] = ..., prioritize: _Optional[_Union[Prioritize, _Mapping]] = ...) -> None: ...

class Retain(_message.Message):
    __slots__ = ("session", "for_s", "expected_use_s", "reuse_probability")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FOR_S_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_USE_S_FIELD_NUMBER: _ClassVar[int]
    REUSE_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    session: str
    for_s: float
    expected_use_s: float
    reuse_probability: float
    def __init__(self, session: _Optional[str] = ..., for_s: _Optional[float] = ..., expected_use_s: _Optional[float] = ..., reuse_probability: _Optional[float] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("session", "standing", "expected_use_s")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_USE_S_FIELD_NUMBER: _ClassVar[int]
    session: str
    standing: Standing
    expected_use_s: float
    def __init__(self, session: _Optional[str] = ..., standing: _Optional[_Union[Standing, str]] = ..., expected_use_s: _Optional[float] = ...) -> None: ...

class Offload(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class Prefetch(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class Prioritize(_message.Message):
    __slots__ = ("priority_by_step",)
    class PriorityByStepEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PRIORITY_BY_STEP_FIELD_NUMBER: _ClassVar[int]
    priority_by_step: _containers.ScalarMap[str, int]
    def __init__(self, priority_by_step: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("id", "outcome", "why")
    ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    id: int
    outcome: Outcome
    why: str
    def __init__(self, id: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., why: _Optional[str] = ...) -> None: ...
