"""Tables as text and pictures: terminal, markdown, CSV, LaTeX, PNG.

All draw the same grid, shaped as the paper prints it: a row a method, a column a task. Below a
published row that we have runs for come the rows of ours.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt.evaluation.curves import save_figure
from gpt.paper.tables import COLUMNS, Table

NOTE = (
    "Ours are scores on validation sets, the published ones on test sets. In percent. n: runs that differ in the seed "
    "alone; difference: our median less the published score."
)
NO_RUNS = "no runs"


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the grid: who says it, and a text for each column."""

    label: str
    cells: list[str]
    is_ours: bool = False


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table as texts."""

    number: int
    title: str
    columns: list[str]
    rows: list[Row]


def make_grid(table: Table) -> Grid:
    """The table in words; a cell without runs says so."""
    rows = []
    for row in table.published.rows:
        rows.append(Row(f"{row.method} (published, test)", [_number(value) for value in row.values]))
        if row.kind is not None:
            rows += _our_rows([cell.to_json() for cell in table.cells[row.kind]])
    title = f"Table {table.published.number}: {table.published.title} ({table.published.source})"
    return Grid(table.published.number, title, [COLUMNS[name].title for name in table.published.columns], rows)


def _our_rows(cells: list[dict[str, Any]]) -> list[Row]:
    def row(label: str, texts: list[str]) -> Row:
        return Row(f"ours (validation): {label}", texts, is_ours=True)

    median = row("median", [_number(cell["median"]) if cell["n"] else NO_RUNS for cell in cells])
    if not any(cell["n"] for cell in cells):
        return [median]
    return [
        median,
        row("difference", [_number(cell["difference"], "+") for cell in cells]),
        row("mean", [_number(cell["mean"]) for cell in cells]),
        row("std", [_number(cell["std"]) for cell in cells]),
        row("max", [_number(cell["max"]) for cell in cells]),
        row("n", [str(cell["n"]) for cell in cells]),
        row("seeds", [" ".join(map(str, cell["seeds"])) for cell in cells]),
    ]


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.1f}"


def to_terminal(grids: Sequence[Grid], *, width: int, color: bool) -> str:
    """Boxes of characters; never narrower than the columns need."""
    from rich.console import Console
    from rich.table import Table as RichTable

    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=color, no_color=not color, highlight=False)
    for grid in grids:
        table = RichTable(title=grid.title, title_justify="left")
        table.add_column("", no_wrap=True)
        for column in grid.columns:
            table.add_column(column, justify="right")
        for index, row in enumerate(grid.rows):
            ends = index + 1 == len(grid.rows) or (row.is_ours and not grid.rows[index + 1].is_ours)
            table.add_row(row.label, *row.cells, style="bold" if row.is_ours else None, end_section=ends)
        console.print(table)
    console.print(NOTE, markup=False)
    return file.getvalue()


def to_markdown(grids: Sequence[Grid]) -> str:
    """Pipe tables."""
    parts = []
    for grid in grids:
        lines = [f"**{grid.title}**", "", _pipes(["", *grid.columns]), _pipes(["---", *("---:" for _ in grid.columns)])]
        parts.append("\n".join([*lines, *(_pipes([row.label, *row.cells]) for row in grid.rows)]))
    return "\n\n".join([*parts, NOTE]) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_csv(grids: Sequence[Grid]) -> str:
    """A header line for each table, because their columns differ; the note on the last line."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for grid in grids:
        writer.writerow([f"table {grid.number}", *grid.columns])
        writer.writerows([row.label, *row.cells] for row in grid.rows)
    writer.writerow([NOTE])
    return file.getvalue()


_LATEX_ESCAPES = str.maketrans({"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$"})


def to_latex(grids: Sequence[Grid]) -> str:
    """`table` environments with the rules of the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for grid in grids:
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{f'{grid.title}. {NOTE}'.translate(_LATEX_ESCAPES)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * len(grid.columns)}}}", r"\toprule"]
        lines += [_ampersands(["", *grid.columns]), r"\midrule"]
        for row, before in zip(grid.rows, [None, *grid.rows], strict=False):
            if before is not None and before.is_ours and not row.is_ours:
                lines.append(r"\midrule")
            lines.append(_ampersands([row.label, *row.cells]))
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(cell.translate(_LATEX_ESCAPES) for cell in cells) + r" \\"


def draw_png(grids: Sequence[Grid], output: Path) -> None:
    """Writes all tables, one below the other, as a picture.

    Raises:
      DataError: it cannot be written.
    """
    from matplotlib.figure import Figure

    heights = [0.25 * (len(grid.rows) + 3) for grid in grids]
    figure = Figure(figsize=(4 + 0.95 * max(len(grid.columns) for grid in grids), sum(heights) + 0.5))
    panels = figure.subfigures(len(grids) + 1, 1, squeeze=False, height_ratios=[*heights, 0.5])[:, 0]
    for panel, grid, height in zip(panels[:-1], grids, heights, strict=True):
        axes = panel.add_axes((0, 0, 1, 1 - 0.4 / height))
        axes.axis("off")
        panel.suptitle(grid.title, fontsize=9, x=0.02, ha="left")
        first = 4 / figure.get_figwidth()
        drawn = axes.table(
            [[row.label, *row.cells] for row in grid.rows],
            colLabels=["", *grid.columns],
            colWidths=[first, *((1 - first) / len(grid.columns) for _ in grid.columns)],
            bbox=(0.01, 0.02, 0.98, 0.98),
        )
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(8)
        for (line, column), cell in drawn.get_celld().items():
            cell.set_linewidth(0.3)
            cell.get_text().set_horizontalalignment("left" if column == 0 else "center")
            if line > 0 and grid.rows[line - 1].is_ours:
                cell.set_facecolor("#eef4fb")
    panels[-1].text(0.02, 0.5, NOTE, fontsize=7, va="center", wrap=True)
    save_figure(figure, output)
