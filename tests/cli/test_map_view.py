"""The mapping table as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cli import map_view
from cli.map_view import Run, cells, legend, plain_lines, rich_lines, runs_of_entries, runs_of_map, write_png


def letters(runs: list[Run], count: int, cells_max: int = 64) -> str:
    return "".join(cell.letter for cell in cells(runs, 0, count, cells_max)[0])


def test_a_cell_for_each_segment() -> None:
    runs = [
        Run(0, 2, "mapped", 0),
        Run(2, 1, "no-write", 1),
        Run(3, 1, "error"),
        Run(4, 3, "zero"),
        Run(7, 1, "invalid"),
    ]
    assert letters(runs, 8) == "MMNE...?"


def test_what_no_run_names_is_invalid() -> None:
    assert letters([Run(1, 1, "mapped", 0)], 3) == "?M?"


def test_cells_of_many_segments_show_the_most_telling_state() -> None:
    runs = [Run(0, 4, "zero"), Run(4, 1, "mapped", 0), Run(5, 3, "zero"), Run(8, 4, "mapped", 0), Run(12, 1, "error")]
    picture, width = cells(runs, 0, 16, 4)
    assert width == 4
    assert "".join(cell.letter for cell in picture) == ".mMe"


@pytest.mark.parametrize("count", [1, 7, 63, 64, 65, 1000])
@pytest.mark.parametrize("cells_max", [1, 5, 64])
def test_every_segment_is_in_exactly_one_cell(count: int, cells_max: int) -> None:
    picture, width = cells([Run(0, count, "mapped", 3)], 0, count, cells_max)
    assert len(picture) <= cells_max
    assert (len(picture) - 1) * width < count <= len(picture) * width
    assert {cell.letter for cell in picture} == {"M"}


def test_a_part_of_the_table() -> None:
    runs = [Run(0, 10, "zero"), Run(10, 10, "mapped", 0)]
    picture, _ = cells(runs, 8, 4)
    assert "".join(cell.letter for cell in picture) == "..MM"
    assert plain_lines(picture, 1, 8, 2) == [" 8 ..", "10 MM"]


def test_rows_that_look_the_same_are_told_once() -> None:
    picture, width = cells([Run(0, 2, "mapped", 0), Run(2, 8, "zero")], 0, 10)
    assert plain_lines(picture, width, 0, 2) == [" 0 MM", " 2 ..  and 3 rows like this"]
    assert plain_lines(picture[:6], width, 0, 2) == ["0 MM", "2 ..", "4 .."]


def test_entries_become_runs() -> None:
    entries = [
        {"segment": 4, "state": "mapped", "slot": 1},
        {"segment": 5, "state": "mapped", "slot": 1},
        {"segment": 6, "state": "mapped", "slot": 2},
        {"segment": 7, "state": "invalid", "slot": None},
    ]
    assert runs_of_entries(entries) == [Run(4, 2, "mapped", 1), Run(6, 1, "mapped", 2), Run(7, 1, "invalid", None)]


def test_the_legend_counts() -> None:
    runs = runs_of_map(
        [{"start": 0, "count": 5, "state": "zero"}, {"start": 5, "count": 2, "state": "mapped", "slot": 0}]
    )
    assert legend(runs) == "M mapped 2   . zero 5"


def test_colours_tell_containers_apart() -> None:
    picture, width = cells([Run(0, 1, "mapped", 0), Run(1, 1, "mapped", 1), Run(2, 1, "zero")], 0, 3)
    line = rich_lines(picture, width)[0]
    assert line.plain == "0 MM."
    assert len({span.style for span in line.spans}) == 3


def test_the_png_has_a_square_for_each_cell(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    write_png(path, [Run(0, 1, "mapped", 0), Run(1, 299, "zero")], 0, 300)
    row_cells, side = map_view.png_layout(300)
    assert row_cells * side <= map_view.PNG_WIDTH_PIXELS
    with Image.open(path) as image:
        assert image.getpixel((1, 1)) == map_view.SLOT_PIXELS[0]
        assert image.getpixel((side + 1, 1)) == map_view.STATES["zero"][2]
        assert image.size == (row_cells * side, -(-300 // row_cells) * side + 24)
