"""`saga explain`: what happened to a session, and why, from the log of a run.

A log is a header and then one line per event and per command, in order (docs of `saga sim --log`). This command only
reads it: the reasons are the scheduler's own words. With `--verify` the events go through a fresh scheduler, which must
give the same commands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import msgspec
import typer

from saga import commands
from saga.commands import AnyCommand
from saga.errors import InvariantViolated, TraceError, UsageError
from saga.events import AnyEvent, StepArrived, StepFinished

SCHEMA = 1
_NUM_LISTED = 20
_COMMANDS = {kind.__name__ for kind in commands.Command.__subclasses__()}
_HIDDEN = {"type", "at_s", "reason", "session", "task", "step", "tenant", "workflow", "parent", "prefix", "gap_kind"}


class LogHeader(msgspec.Struct):
    """First line of a log."""

    schema: int
    kind: str
    preset: str
    seed: int = 0
    workload: str = ""


class LogLine(msgspec.Struct):
    """Any other line: an event, or a command that the scheduler gave at a time."""

    event: AnyEvent | None = None
    command: dict[str, object] | None = None
    at_s: float = 0.0


@dataclass(frozen=True)
class Moment:
    """One line about a session: an event that happened, or the fields of a command that the scheduler gave."""

    at_s: float
    what: AnyEvent | dict[str, object]

    @property
    def is_decision(self) -> bool:
        """Whether the scheduler chose this."""
        return isinstance(self.what, dict)

    def get(self, name: str) -> str | None:
        """A field that is text, None where there is none."""
        found = self.what.get(name) if isinstance(self.what, dict) else getattr(self.what, name, None)
        return found if isinstance(found, str) else None

    def is_command(self, kind: type[commands.Command]) -> bool:
        """Whether this is a command of that kind."""
        return self.is_decision and self.get("type") == kind.__name__


@dataclass
class Story:
    """All moments of one session, in order."""

    session: str
    task: str
    tenant: str
    moments: list[Moment] = field(default_factory=list)


class Row(msgspec.Struct):
    """One session in the list. steps: arrived; held: times that one was told to wait; workers: where it ran."""

    session: str
    task: str
    tenant: str
    steps: int
    held: int
    workers: list[str]


Line = TypeVar("Line")
Stories: TypeAlias = dict[str, Story]


def explain(
    log: Annotated[Path, typer.Argument(help="Log of a run: `saga sim --log FILE`.")],
    session: Annotated[str | None, typer.Option(help="The session to tell about; without it, a list.")] = None,
    step: Annotated[str | None, typer.Option(help="Only this step of the session.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Replay the events: same commands again?")] = False,
) -> None:
    """Tell what happened to a session, and why the scheduler did what it did.

    saga sim --workload swe_bench --preset saga --oversubscription 1.5 --tasks 100 --seeds 1 --log run.jsonl

    saga explain run.jsonl

    saga explain run.jsonl --session NAME
    """
    if verify:
        _verify(log)
        return
    header, stories = read_log(log)
    if session is None:
        if step is not None:
            raise UsageError(f"--step {step}: needs --session too")
        _list(header, stories, as_json=as_json)
        return
    story = _find(stories, session)
    moments = [moment for moment in story.moments if step is None or moment.get("step") == step]
    if not moments:
        steps = list(dict.fromkeys(name for moment in story.moments if (name := moment.get("step"))))
        raise UsageError(f"session {session!r} has no step {step!r}; it has {_some(steps)}")
    if as_json:
        _write_json(moments)
    else:
        _tell(header, story, moments)


def read_log(path: Path) -> tuple[LogHeader, Stories]:
    """Header and stories by session, in order of first appearance. O(lines).

    TraceError with the line where the file is missing, malformed, cut short or of another schema.
    """
    header, lines = _parse(path)
    stories: Stories = {}
    session_of: dict[str, str] = {}
    for line in lines:
        moment = Moment(line.at_s, line.command or {}) if line.event is None else Moment(line.event.at_s, line.event)
        _note(stories, session_of, moment)
    return header, stories


def _parse(path: Path) -> tuple[LogHeader, Iterator[LogLine]]:
    """The header, and the other lines one by one, each with an event or with a command of a known kind."""
    lines = _lines(path)
    header = _header(path, next(lines, (1, b"")))
    return header, _parse_rest(path, lines)


def _parse_rest(path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[LogLine]:
    """The lines after the header."""
    decoder = msgspec.json.Decoder(LogLine)
    for number, text in lines:
        line = _decode(decoder, path, number, text)
        if line.event is None and (line.command is None or line.command.get("type") not in _COMMANDS):
            raise TraceError(path, "neither an event nor a known command", line=number)
        yield line


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, from 1; TraceError where the file cannot be read or its last line is cut."""
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if not text.endswith(b"\n"):
                    raise TraceError(path, "the file ends in the middle of a line: the run was cut short", line=number)
                yield number, text
    except OSError as error:
        raise TraceError(path, f"cannot be read: {error.strerror}") from error


def _header(path: Path, first: tuple[int, bytes]) -> LogHeader:
    """The checked first line."""
    number, text = first
    if not text:
        raise TraceError(path, "is empty; expected the log of a run (saga sim --log)")
    header: LogHeader = _decode(msgspec.json.Decoder(LogHeader), path, number, text)
    if header.kind != "log" or header.schema != SCHEMA:
        found = f"kind {header.kind!r}, schema {header.schema}"
        raise TraceError(path, f"{found}; expected kind 'log', schema {SCHEMA} (saga sim --log)", line=number)
    return header


def _decode(decoder: msgspec.json.Decoder[Line], path: Path, number: int, text: bytes) -> Line:
    """One line; TraceError names what is wrong with it."""
    try:
        return decoder.decode(text)
    except msgspec.DecodeError as error:
        raise TraceError(path, f"not a line of a log: {error}", line=number) from error


def _note(stories: Stories, session_of: dict[str, str], moment: Moment) -> None:
    """Add a moment to the session it is about; facts about workers and time are about none."""
    what = moment.what
    if isinstance(what, StepArrived):
        session_of[what.step] = what.session
        stories.setdefault(what.session, Story(what.session, what.task, what.tenant))
    session = moment.get("session") or session_of.get(moment.get("step") or "")
    if session in stories:
        stories[session].moments.append(moment)


def _find(stories: Stories, session: str) -> Story:
    """The story of a session; UsageError with near names where there is none."""
    if session in stories:
        return stories[session]
    near = get_close_matches(session, stories, n=3, cutoff=0.3)
    hint = f"; near: {', '.join(near)}" if near else ""
    raise UsageError(f"no session {session!r} among the {len(stories)} of this log{hint}")


def _list(header: LogHeader, stories: Stories, *, as_json: bool) -> None:
    """One line per session: those that waited most often first, since they have most to explain."""
    rows = sorted((_row(story) for story in stories.values()), key=lambda row: -row.held)
    if as_json:
        for row in rows:
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return
    typer.echo(_title(header))
    typer.echo(f"{len(rows)} sessions; held most often:\n")
    width = max(len(row.session) for row in rows[:_NUM_LISTED]) if rows else 0
    typer.echo(f"{'session':{width}} {'steps':>5} {'held':>5}  workers")
    for row in rows[:_NUM_LISTED]:
        typer.echo(f"{row.session:{width}} {row.steps:>5} {row.held:>5}  {' '.join(row.workers)}")
    if len(rows) > _NUM_LISTED:
        typer.echo(f"... and {len(rows) - _NUM_LISTED} more (--json lists all)")


def _row(story: Story) -> Row:
    """A session in numbers."""
    moments = story.moments
    return Row(
        session=story.session,
        task=story.task,
        tenant=story.tenant,
        steps=sum(isinstance(moment.what, StepArrived) for moment in moments),
        held=sum(moment.is_command(commands.Hold) for moment in moments),
        workers=sorted({str(moment.get("worker")) for moment in moments if moment.is_command(commands.Dispatch)}),
    )


def _tell(header: LogHeader, story: Story, moments: list[Moment]) -> None:
    """A time line for people: facts plain, decisions with an arrow and their reason."""
    typer.echo(_title(header))
    typer.echo(f"session {story.session}, task {story.task}, tenant {story.tenant}\n")
    previous = None
    for moment in moments:
        if isinstance(moment.what, StepArrived) and previous is not None:
            typer.echo()
        previous = moment
        typer.echo(f"{moment.at_s:>12.3f} s  {'=> ' if moment.is_decision else '   '}{_in_words(moment.what)}")


def _title(header: LogHeader) -> str:
    """What was run."""
    return f"{header.workload} under {header.preset}, seed {header.seed} (simulated)"


def _in_words(what: AnyEvent | dict[str, object]) -> str:
    """One moment in one line."""
    match what:
        case StepArrived():
            known = "" if what.common_tokens is None else f", the first {what.common_tokens:,} as in the last call"
            return f"step {what.step} arrives: {what.prompt_tokens:,} prompt tokens{known}"
        case StepFinished():
            tools = f"; calls {', '.join(what.tool_calls)}" if what.tool_calls else ""
            found = f"{what.cached_tokens:,} found on the device, {what.host_tokens:,} brought from elsewhere"
            return f"finished on {what.worker}: {what.output_tokens:,} tokens; of the prompt {found}{tools}"
        case dict():
            return _named(what, str(what["type"])) + f": {what.get('reason', '')}"
        case _:
            return _named(msgspec.to_builtins(what), type(what).__name__)


def _named(fields: dict[str, object], name: str) -> str:
    """`Name key value, key value`, without what the reader knows already or what says nothing."""
    said = {key: value for key, value in fields.items() if key not in _HIDDEN and value is not None}
    return " ".join((name, ", ".join(f"{key} {_short(value)}" for key, value in said.items()))).strip()


def _short(value: object) -> str:
    """Numbers without noise."""
    return f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _write_json(moments: list[Moment]) -> None:
    """One object per line: at_s, decided, and the event or command itself."""
    for moment in moments:
        line = {"at_s": moment.at_s, "decision": moment.is_decision, "what": moment.what}
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")


def _verify(log: Path) -> None:
    """Replay the log; says that the commands are the same, or fails with the first difference."""
    from saga.sim.replay import replay

    header, lines = _parse(log)
    difference = replay(header.preset, _turns(log, lines))
    if difference is not None:
        happened = msgspec.json.encode(difference.event).decode()
        recorded, replayed = (msgspec.json.encode(given).decode() for given in difference[2:])
        raise InvariantViolated(
            f"event {difference.event_number} of {log} now leads elsewhere. Event: {happened} "
            f"Recorded: {recorded} Replayed: {replayed}"
        )
    typer.echo(f"{_title(header)}: the replay gives the same commands")


def _turns(path: Path, lines: Iterator[LogLine]) -> Iterator[tuple[AnyEvent, list[commands.Command]]]:
    """Each event with the commands that followed it."""
    event: AnyEvent | None = None
    given: list[commands.Command] = []
    for line in lines:
        if line.event is None:
            given.append(_restore(path, line.command or {}))
            continue
        if event is not None:
            yield event, given
        event, given = line.event, []
    if event is not None:
        yield event, given


def _restore(path: Path, fields: dict[str, object]) -> commands.Command:
    """A command from its fields."""
    try:
        command: commands.Command = msgspec.convert(fields, AnyCommand)
    except msgspec.ValidationError as error:
        raise TraceError(path, f"{fields['type']}: {error}") from error
    return command
