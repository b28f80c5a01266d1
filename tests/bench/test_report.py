"""The page is whole, deterministic, and says no more than the runs."""

from __future__ import annotations

import random
import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from saga.bench.drawing import KINDS
from saga.bench.report import ReportGroup, Segment, render_report, write_report
from saga.bench.tables import summarise
from saga.errors import UsageError


@dataclass
class FakeDetail:
    """What a run remembers."""

    tct_s: list[float] = field(default_factory=list)
    occupancy: list[tuple[float, float, float]] = field(default_factory=list)
    timeline: list[Segment] = field(default_factory=list)


def make_detail(seed: int, *, slow: float, num_sessions: int = 5) -> FakeDetail:
    """Sessions that wait, read, write and go away, `slow` times as slowly as could be."""
    rng = random.Random(seed)
    detail = FakeDetail(
        tct_s=[slow * rng.lognormvariate(5, 0.6) for _ in range(50)],
        occupancy=[(float(at), min(1.0, 0.3 * slow + 0.1 * rng.random()), 0.95) for at in range(0, 600, 5)],
    )
    for session in range(num_sessions):
        at_s = 10.0 * session
        while at_s < 600:
            for kind in KINDS:
                length_s = rng.expovariate(1 / (8 * slow if kind == "queued" else 6))
                detail.timeline.append(("w0", f"s{session}", f"t{session}", kind, at_s, at_s + length_s))
                at_s += length_s
    return detail


def make_group(workload: str = "fake <agents>", *, num_seeds: int = 3) -> ReportGroup:
    """Three presets with figures and details."""
    slow = {"vllm_apc": 3.0, "saga": 1.2, "infinite_kv": 1.0}
    runs = [
        {
            "preset": name,
            "seed": seed,
            "tct_mean_s": factor * (100 + seed * (3 if name == "saga" else 5)),
            "tct_p99_s": factor * 400,
            "input_tokens": 1_000_000,
            "regenerated_tokens": int(200_000 * (factor - 1)),
            "within_2x_share": 0.5,
            "tenants": {"a": {"tct_mean_s": 1.0}, "b": {"tct_mean_s": 2.0}},
        }
        for seed in range(num_seeds)
        for name, factor in slow.items()
    ]
    details = {name: make_detail(1, slow=factor) for name, factor in slow.items()}
    return ReportGroup(workload, ("4 workers",), runs, summarise(runs), details)


class Elements(HTMLParser):
    """Open elements, ids and texts of a page; fails where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember what must be closed."""
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in {"meta", "br", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed as it opens."""
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        """The innermost open element closes first."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep the words."""
        self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    """One rendered page."""
    return render_report("A title & more", [make_group()])


def read(page: str) -> Elements:
    """The parsed page."""
    elements = Elements()
    elements.feed(page)
    elements.close()
    assert elements.open == []
    return elements


def test_page_stands_alone_and_is_well_formed(page: str) -> None:
    """Tags nest, nothing is fetched from elsewhere, names are escaped, and everything is called simulated."""
    elements = read(page)
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "fake <agents>" in elements.text
    assert "A title & more" in elements.text
    assert elements.text.count("simulated") >= 4


def test_drawings_wear_the_colours_of_the_page(page: str) -> None:
    """No stand-in colour and no fixed black is left in the drawings, so both light and dark screens work."""
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "#0102" not in drawings
    assert "#000000" not in drawings
    assert drawings.count("<svg") == 3
    assert {f"var(--{kind})" for kind in KINDS} <= set(re.findall(r"var\(--[a-z0-9-]+\)", drawings))


def test_every_colour_that_is_used_is_defined_for_light_and_dark(page: str) -> None:
    """Each CSS variable in use has a value on both kinds of screen."""
    for name in set(re.findall(r"var\((--[a-z0-9-]+)\)", page)):
        assert len(re.findall(rf"{name}: #", page)) == 2, name


def test_same_runs_same_page(page: str) -> None:
    """No dates, no random ids."""
    assert render_report("A title & more", [make_group()]) == page


def test_runs_without_details_make_a_page_without_drawings() -> None:
    """Tables and sentences do not need details; empty details draw what there is."""
    group = make_group()
    bare = ReportGroup(group.workload, group.notes, group.runs, group.summary, {})
    assert "<svg" not in render_report("t", [bare])
    some = ReportGroup(group.workload, group.notes, group.runs, group.summary, {"saga": FakeDetail(tct_s=[1.0, 2.0])})
    assert render_report("t", [some]).count("<svg") == 1


def test_measured_groups_are_told_apart_from_simulated_ones(page: str) -> None:
    """A measured group says so in its table and sentence, and the page no longer calls all of it simulated."""
    assert "Every figure on this page is simulated" in page
    runs = [
        {"preset": name, "seed": seed, "tct_mean_s": tct_s + seed, "prefix_hit_share": share}
        for seed in range(2)
        for name, tct_s, share in (("plain", 20.0, 0.25), ("saga", 10.0, 0.9))
    ]
    details = {"plain": FakeDetail(tct_s=[20.0]), "saga": FakeDetail(tct_s=[10.0])}
    measured = ReportGroup("real", (), runs, summarise(runs), details, kind="measured")
    both = render_report("Both", [make_group(), measured])
    assert "Every figure on this page is simulated" not in both
    assert "simulated" not in render_report("One", [measured])
    text = read(both).text
    assert "measured, mean over 2 runs" in text
    assert "(measured): 1." in text
    assert "plain found 25.0 % of all prompt tokens" in text


def test_long_timelines_are_cut_and_not_the_page_blown_up() -> None:
    """Five times as many sessions make the page hardly larger."""
    group = make_group()
    sizes = []
    for num_sessions in (40, 200):
        details = {"saga": make_detail(1, slow=1.0, num_sessions=num_sessions)}
        sizes.append(len(render_report("t", [ReportGroup("w", (), group.runs, group.summary, details)])))
    assert sizes[1] < 1.2 * sizes[0]


def test_file_is_written_whole(tmp_path: Path) -> None:
    """The page lands under its name and leaves no draft behind."""
    write_report(tmp_path / "out.html", "t", [make_group(), make_group("second")])
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]
    read((tmp_path / "out.html").read_text(encoding="utf-8"))


def test_missing_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib there is one clear line, not a traceback of an import."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("saga.bench.drawing.importlib.util.find_spec", lambda name: None if name == "matplotlib" else 1)
    with pytest.raises(UsageError, match=r"matplotlib; install with: pip install 'saga-sched\[report\]'"):
        render_report("t", [])
