"""The paper's figures as claims: one data file, loaded under its own schema.

A claim says what somebody else wrote, where, and nothing about us. This module refuses to know results; only the tables
of `saga.bench.evaluation` put the two side by side.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from saga.errors import UsageError

_FILE = "paper.toml"


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One figure. Units end the figure's name; shares are 0..1.

    system: the preset, or cache policy, that models what it is about. setting: what was varied. at_most: value is a
    bound. low, high: the range over which a constant was varied. sd: standard deviation over the paper's seeds.
    """

    figure: str
    value: float
    system: str = ""
    workload: str = ""
    setting: str = ""
    sd: float | None = None
    at_most: bool = False
    low: float | None = None
    high: float | None = None


class ClaimTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the paper; `not_simulated`: why nothing is put beside it, where nothing is."""

    id: str
    title: str
    where: str
    claims: tuple[Claim, ...]
    not_simulated: str = ""

    def find(self, figure: str, *, system: str = "", workload: str = "", setting: str = "") -> Claim | None:
        """The claim with exactly these, None where the paper makes none."""
        wanted = (figure, system, workload, setting)
        return next((c for c in self.claims if (c.figure, c.system, c.workload, c.setting) == wanted), None)

    def value(self, figure: str, *, system: str = "", workload: str = "", setting: str = "") -> float | None:
        """Its value."""
        found = self.find(figure, system=system, workload=workload, setting=setting)
        return None if found is None else found.value

    def ratio(self, figure: str, over: dict[str, str], under: dict[str, str]) -> float | None:
        """The ratio of two claimed values, None where one is not claimed."""
        above, below = self.value(figure, **over), self.value(figure, **under)
        return None if above is None or not below else above / below


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who claims."""

    title: str
    reference: str


class Setup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """On what, says the paper. load: the one it states."""

    instances: int
    load: float
    seeds: int
    test: str


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: Literal[1]
    kind: Literal["claim"]
    source: Source
    setup: Setup
    tables: tuple[ClaimTable, ...]

    def table(self, name: str) -> ClaimTable:
        """The table of that id; KeyError where there is none."""
        return {table.id: table for table in self.tables}[name]

    def __iter__(self) -> Iterator[Claim]:
        """Every claim of every table."""
        return (claim for table in self.tables for claim in table.claims)


def parse_claims(text: str) -> Claims:
    """The claims in TOML; UsageError that names the field where it is not what a file of claims is."""
    try:
        return msgspec.convert(tomllib.loads(text), Claims)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"not a file of claims: {error}") from error


@cache
def paper_claims() -> Claims:
    """What arXiv 2605.00528 claims, from the package's own data."""
    return parse_claims(files(__package__).joinpath(_FILE).read_text(encoding="utf-8"))
