"""The input vocabulary travels as JSON and comes back as it was."""

from __future__ import annotations

from typing import get_args

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from saga import events as ev

KINDS = get_args(ev.AnyEvent)


def of(kind: type[msgspec.Struct]) -> st.SearchStrategy:
    """Any value of this struct, its fields by their types; numbers are finite as JSON's are."""
    return st.builds(kind, **{field.name: by_type(field.type) for field in msgspec.structs.fields(kind)})


def by_type(wanted: object) -> st.SearchStrategy:
    """Values of a field's type."""
    if wanted is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if wanted is int:
        return st.integers(-(2**53), 2**53)
    if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        return of(wanted)
    options = get_args(wanted)
    if type(None) in options:
        return st.none() | st.one_of([by_type(option) for option in options if option is not type(None)])
    return st.from_type(wanted)  # type: ignore[arg-type]


def test_every_event_is_in_the_union() -> None:
    """A kind that is missing could be written to a log and never read again."""
    assert set(KINDS) == set(ev.Event.__subclasses__())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_an_event_survives_the_trip_through_json(kind: type[ev.Event], data: st.DataObject) -> None:
    """Kind and all fields come back equal from a line of a log."""
    event = data.draw(of(kind))
    assert msgspec.json.decode(msgspec.json.encode(event), type=ev.AnyEvent) == event


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_event_without_its_time_is_refused(kind: type[ev.Event]) -> None:
    """Time arrives with the event or not at all: there is no default to fall back on."""
    with pytest.raises(msgspec.ValidationError, match="at_s"):
        msgspec.json.decode(msgspec.json.encode({"type": kind.__name__}), type=ev.AnyEvent)


@pytest.mark.parametrize("kind", [*KINDS, ev.Hints], ids=lambda kind: kind.__name__)
def test_a_fact_does_not_change(kind: type[msgspec.Struct]) -> None:
    """What was reported is immutable, so that a log of the same objects is the history."""
    assert kind.__struct_config__.frozen
