"""A mapping table as a picture: a cell per segment, or per run of segments when there are too many.

States have letters and colours, the same in the terminal and in PNG files. A cell that stands for several segments
shows the most telling state among them, in lower case when not all are alike.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CELLS_MAX = 1024
ROW_CELLS = 64
ALIKE_MIN = 3
PNG_CELLS_MAX = 1 << 16
PNG_WIDTH_PIXELS = 1024
PNG_SIDE_MAX = 24

# Most telling first: what a cell of many segments shows.
STATES: dict[str, tuple[str, str, tuple[int, int, int]]] = {
    "error": ("E", "bold white on red", (200, 40, 40)),
    "no-write": ("N", "black on yellow", (220, 180, 40)),
    "mapped": ("M", "black on green", (60, 160, 80)),
    "zero": (".", "bright_black", (225, 225, 225)),
    "invalid": ("?", "magenta", (150, 110, 170)),
}
SLOT_STYLES = ("black on green", "black on cyan", "white on blue", "black on bright_green", "black on bright_cyan")
SLOT_PIXELS = ((60, 160, 80), (50, 160, 190), (70, 90, 200), (130, 200, 90), (110, 200, 220))
RANK = {state: rank for rank, state in enumerate(STATES)}


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` segments from ``start`` in one state; ``slot`` is the container's, where there is one."""

    start: int
    count: int
    state: str
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One place in the picture."""

    state: str
    mixed: bool
    slot: int | None

    @property
    def letter(self) -> str:
        letter = STATES[self.state][0]
        return letter.lower() if self.mixed else letter

    @property
    def style(self) -> str:
        if self.state == "mapped" and self.slot is not None:
            return SLOT_STYLES[self.slot % len(SLOT_STYLES)]
        return STATES[self.state][1]

    @property
    def pixel(self) -> tuple[int, int, int]:
        if self.state == "mapped" and self.slot is not None:
            colour = SLOT_PIXELS[self.slot % len(SLOT_PIXELS)]
        else:
            colour = STATES[self.state][2]
        return (colour[0] + 30, colour[1] + 30, colour[2] + 30) if self.mixed else colour


def runs_of_map(runs: Iterable[Mapping[str, Any]]) -> list[Run]:
    """The runs of `vdisk.map`'s answer."""
    return [Run(run["start"], run["count"], run["state"], run.get("slot")) for run in runs]


def runs_of_entries(entries: Iterable[Mapping[str, Any]]) -> list[Run]:
    """Single entries, as `agent.entries` answers them, joined into runs of one state and container."""
    runs: list[Run] = []
    for entry in entries:
        segment, state, slot = entry["segment"], entry["state"], entry.get("slot")
        last = runs[-1] if runs else None
        if last and last.state == state and last.slot == slot and last.start + last.count == segment:
            runs[-1] = Run(last.start, last.count + 1, state, slot)
        else:
            runs.append(Run(segment, 1, state, slot))
    return runs


def cells(runs: Sequence[Run], start: int, count: int, cells_max: int = CELLS_MAX) -> tuple[list[Cell], int]:
    """(cells, segments a cell) of ``count`` segments from ``start``; what no run names is invalid."""
    width = max(1, -(-count // cells_max))
    found: list[dict[str, tuple[int, int | None]]] = [{} for _ in range(-(-count // width))]
    for run in runs:
        first, last = max(run.start, start), min(run.start + run.count, start + count)
        for index in range((first - start) // width, -(-(last - start) // width)):
            begin = max(first, start + index * width)
            covered = min(last, start + (index + 1) * width) - begin
            number, slot = found[index].get(run.state, (0, run.slot))
            found[index][run.state] = (number + covered, slot)
    sizes = [min(width, count - index * width) for index in range(len(found))]
    return [_cell(states, size) for states, size in zip(found, sizes, strict=True)], width


def _cell(states: dict[str, tuple[int, int | None]], size: int) -> Cell:
    if not states:
        return Cell("invalid", False, None)
    state = min(states, key=lambda name: RANK[name])
    number, slot = states[state]
    return Cell(state, number < size, slot)


def totals(runs: Sequence[Run]) -> Counter[str]:
    """Segments by state."""
    counter: Counter[str] = Counter()
    for run in runs:
        counter[run.state] += run.count
    return counter


def rows(picture: Sequence[Cell], row_cells: int = ROW_CELLS) -> list[Sequence[Cell]]:
    return [picture[index : index + row_cells] for index in range(0, len(picture), row_cells)]


@dataclass(frozen=True, slots=True)
class Line:
    """A printed row: its first segment, its cells, and how many rows like it follow unprinted."""

    head: str
    row: Sequence[Cell]
    alike: int


def lines(picture: Sequence[Cell], width: int, start: int, row_cells: int) -> list[Line]:
    """Rows with their heads; of three or more rows that look the same only the first is kept."""
    digits = len(str(start + len(picture) * width))
    found: list[Line] = []
    for looks, group in itertools.groupby(enumerate(rows(picture, row_cells)), key=lambda pair: list(pair[1])):
        members = list(group)
        kept = members if len(members) < ALIKE_MIN else members[:1]
        for index, _ in kept:
            head = f"{start + index * row_cells * width:>{digits}}"
            found.append(Line(head, looks, len(members) - len(kept)))
    return found


def plain_lines(picture: Sequence[Cell], width: int, start: int = 0, row_cells: int = ROW_CELLS) -> list[str]:
    """The picture in letters, each row headed by its first segment."""
    return [
        f"{line.head} {''.join(cell.letter for cell in line.row)}{alike_text(line.alike)}"
        for line in lines(picture, width, start, row_cells)
    ]


def rich_lines(picture: Sequence[Cell], width: int, start: int = 0, row_cells: int = ROW_CELLS) -> list[Any]:
    """The same in letters and colours, as rich texts."""
    from rich.text import Text

    texts = []
    for line in lines(picture, width, start, row_cells):
        text = Text(f"{line.head} ", style="bright_black")
        for cell in line.row:
            text.append(cell.letter, style=cell.style)
        text.append(alike_text(line.alike), style="bright_black")
        texts.append(text)
    return texts


def alike_text(alike: int) -> str:
    return f"  and {alike} rows like this" if alike else ""


def legend(runs: Sequence[Run]) -> str:
    """Letters, states and how many segments are in each."""
    counted = totals(runs)
    return "   ".join(f"{STATES[state][0]} {state} {counted[state]}" for state in STATES if counted[state])


def png_layout(count: int) -> tuple[int, int]:
    """(cells in a row, pixels of a cell's side): a picture twice as wide as high, of about the same width always."""
    row_cells = 8
    while row_cells * row_cells < 2 * count and row_cells < PNG_WIDTH_PIXELS // 4:
        row_cells *= 2
    return row_cells, min(PNG_SIDE_MAX, PNG_WIDTH_PIXELS // row_cells)


def write_png(path: Path, runs: Sequence[Run], start: int, count: int) -> None:
    """The picture as a PNG file: a square per cell, and a legend below."""
    from PIL import Image, ImageDraw

    picture, _ = cells(runs, start, count, PNG_CELLS_MAX)
    row_cells, side = png_layout(len(picture))
    squares = rows(picture, row_cells)
    image = Image.new("RGB", (max(row_cells * side, 480), len(squares) * side + 24), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for y, line in enumerate(squares):
        for x, cell in enumerate(line):
            draw.rectangle((x * side, y * side, (x + 1) * side - 2, (y + 1) * side - 2), fill=cell.pixel)
    draw_legend(draw, totals(runs), len(squares) * side + 6)
    image.save(path, format="PNG")


def draw_legend(draw: Any, counted: Counter[str], top: int) -> None:
    x = 4
    for state, (letter, _, colour) in STATES.items():
        if not counted[state]:
            continue
        draw.rectangle((x, top, x + 10, top + 10), fill=colour, outline=(90, 90, 90))
        text = f"{letter} {state} {counted[state]}"
        draw.text((x + 15, top - 1), text, fill=(0, 0, 0))
        x += 15 + int(draw.textlength(text)) + 14
