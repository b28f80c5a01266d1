"""Drawings fit any page: colours by name, no sizes, no dates."""

from __future__ import annotations

from saga.bench.drawing import INK, as_svg, dress, new_figure, plain_number, series


def draw(salt: str) -> str:
    """A line in each colour of a series."""
    figure = new_figure(2.0)
    axes = figure.add_subplot()
    for index in range(9):
        axes.plot([0, 1], [index, index], color=series(index), label=f"line {index}")
    axes.set_title("all of them", color=INK)
    axes.legend()
    dress(axes)
    return as_svg(figure, salt)


def test_no_stand_in_colour_is_left() -> None:
    """Every colour in the drawing is a variable of the page, so that it follows light and dark."""
    svg = draw("a")
    assert svg.startswith("<svg")
    assert "#0102" not in svg
    assert all(f"var(--series-{index})" in svg for index in range(7))
    assert "var(--ink)" in svg


def test_the_same_drawing_is_the_same_text() -> None:
    """Nothing of the moment is in it, and its words are words."""
    assert draw("a") == draw("a")
    assert "all of them" in draw("a")


def test_numbers_on_axes_are_plain() -> None:
    """1,000 rather than a power of ten."""
    assert [plain_number(value, 0.0) for value in (1000.0, 1.0, 0.25)] == ["1,000", "1", "0.25"]
