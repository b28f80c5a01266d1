"""What is made for every call has an `__init__` that is written out: it takes what its fields are."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from saga.cache.ttl import GapFacts
from saga.gateway.contracts import Answer, Call, Request, Ticket
from saga.gateway.conversations import Placement
from saga.gateway.http1 import Message
from saga.gateway.reading import Reading
from saga.workflow.forecast import Forecast


@pytest.mark.python_core
@pytest.mark.parametrize("kind", [Answer, Call, Forecast, GapFacts, Message, Placement, Reading, Request, Ticket])
def test_an_init_that_is_written_out_takes_every_field_in_its_order(kind: Any) -> None:
    """A field that is added in one of the two places only is noticed here, not at the first call."""
    taken = list(inspect.signature(kind).parameters)
    assert taken == [field.name for field in dataclasses.fields(kind)]
