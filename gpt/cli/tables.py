"""Tables 2 to 5 of the paper with the scores of our runs beside the published ones.

A run belongs to a row by its config: full (pretrained, auxiliary language model), without pre-training
(RunConfig.init_from = None), without auxiliary language model (TaskConfig.lm_coef = 0), LSTM.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from gpt.errors import ConfigError, DataError
from gpt.paper.published import TABLES

FORMATS = ("terminal", "markdown", "csv", "latex", "png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", required=True, type=Path, metavar="DIR", help="every run directory below it counts")
    parser.add_argument("--table", type=int, choices=TABLES, help="one table; default: all")
    parser.add_argument(
        "--format", choices=FORMATS, default="terminal", help="default: %(default)s; png needs --output"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of on standard output")
    parser.add_argument("--json", action="store_true", help="print one object a cell a line on standard output")


def run(args: argparse.Namespace) -> int:
    from gpt.paper.render import draw_png, make_grid
    from gpt.paper.runs import collect_runs
    from gpt.paper.tables import make_table

    if args.format == "png" and args.output is None:
        raise ConfigError("--format png: a picture is not printed, name its file with --output FILE.png")
    collection = collect_runs(args.runs)
    for note in collection.notes:
        print(f"note: {note}", file=sys.stderr)
    tables = [make_table(number, collection) for number in ([args.table] if args.table else TABLES)]
    grids = [make_grid(table) for table in tables]
    if args.json:
        for table in tables:
            for cell in (cell for cells in table.cells.values() for cell in cells):
                print(json.dumps(cell.to_json()))
    if args.format == "png":
        draw_png(grids, args.output)
    elif args.output is not None:
        _write(args.output, _text(grids, args.format, width=200, color=False))
    elif not args.json:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
        print(_text(grids, args.format, width=columns, color=sys.stdout.isatty()), end="")
    if args.output is not None:
        print(f"wrote {args.output}", file=sys.stderr)
    return 0


def _text(grids: list, format_name: str, *, width: int, color: bool) -> str:
    from gpt.paper import render

    if format_name == "terminal":
        return render.to_terminal(grids, width=width, color=color)
    return {"markdown": render.to_markdown, "csv": render.to_csv, "latex": render.to_latex}[format_name](grids)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"--output {str(path)!r} cannot be written: {error}") from error
