"""The output vocabulary travels as JSON, and every order gives its reason."""

from __future__ import annotations

from typing import get_args

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from saga import commands as do

KINDS = get_args(do.AnyCommand)
VALUES = {
    float: st.floats(allow_nan=False, allow_infinity=False),
    int: st.integers(-(2**62), 2**62),  # priorities use the whole range
    str: st.text(),
    do.Standing: st.sampled_from(do.Standing),
    float | None: st.none() | st.floats(allow_nan=False, allow_infinity=False),
}


def test_every_command_is_in_the_union() -> None:
    """A kind that is missing could be given and never recorded."""
    assert set(KINDS) == set(do.Command.__subclasses__())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_command_survives_the_trip_through_json(kind: type[do.Command], data: st.DataObject) -> None:
    """Kind and all fields come back equal, where all times are finite."""
    command = data.draw(st.builds(kind, **{each.name: VALUES[each.type] for each in msgspec.structs.fields(kind)}))
    assert msgspec.json.decode(msgspec.json.encode(command), type=do.AnyCommand) == command


def test_a_time_without_end_is_none() -> None:
    """JSON has no infinity: what is held until it ends says None, and survives the trip."""
    endless = do.Retain("s", "w", None, None, "held until it ends")
    assert msgspec.json.decode(msgspec.json.encode(endless), type=do.AnyCommand) == endless


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_command_must_give_its_reason(kind: type[do.Command]) -> None:
    """A decision explains itself: `reason` has no default, and an order does not change once given."""
    reason = next(each for each in msgspec.structs.fields(kind) if each.name == "reason")
    assert reason.required
    assert kind.__struct_config__.frozen
