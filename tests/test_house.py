"""The plan of the house in docs/design.md, held against the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "gpt").rglob("*.py"), ROOT / "train.py", ROOT / "eval.py"])

# Bottom to top: a module imports from its own floor and from those below.
FLOORS = (
    ("gpt", "gpt.errors", "gpt.files", "gpt.hardware", "gpt.reading"),
    ("gpt.config",),
    ("gpt.gin_io",),
    ("gpt.text", "gpt.objectives", "gpt.metrics"),
    ("gpt.sharding",),
    ("gpt.model", "gpt.data"),
    ("gpt.tasks",),
    ("gpt.interop",),
    ("gpt.training",),
    ("gpt.evaluation", "gpt.generation", "gpt.sweeps", "gpt.planning"),
    ("gpt.paper", "gpt.demo"),
    ("gpt.cli", "gpt.__main__"),
    ("train", "eval"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    floors = [
        (len(name), floor)
        for floor, names in enumerate(FLOORS)
        for name in names
        if module == name or (module.startswith(f"{name}.") and name != "gpt")
    ]
    assert floors, f"{module} has no floor: add it to FLOORS"
    return max(floors)[1]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            if node.module == "gpt":
                yield from (f"gpt.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_run_downwards(path: Path) -> None:
    here = floor_of(module_name(path))
    above = [name for name in imports(path) if re.match(r"gpt\b|train$|eval$", name) and floor_of(name) > here]
    assert not above, f"{module_name(path)} imports from above: {above}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_the_walls_stand(path: Path) -> None:
    module = module_name(path)
    imported = set(imports(path))
    if module != "gpt.gin_io.parse":
        assert not any(name.split(".")[0] == "gin" for name in imported), "only gin_io/parse.py imports gin"
    if not module.startswith("gpt.model"):
        assert not any(name.startswith("flax") for name in imported), "only model/ imports flax"
    if module != "gpt.sharding" and not module.startswith("gpt.config"):
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not strings & {"fsdp", "tensor"}, "only sharding.py spells mesh-axis names"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_rooms_are_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= (50 if path.parent == ROOT else 320)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is longer than 60 lines"


def test_every_module_is_imported_somewhere() -> None:
    used = {name for path in SOURCES for name in imports(path)}
    commands = {f"gpt.cli.{path.stem}" for path in (ROOT / "gpt" / "cli").glob("*.py")}
    unused = {module_name(path) for path in SOURCES if path.name not in ("__init__.py", "__main__.py")} - used
    assert unused <= commands | {"train", "eval"}


def test_every_pinned_package_is_pinned_exactly_and_names_no_address() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 40
    for line in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;]+( ; python_version (<|>=) \"3\.12\")?", line), line


@pytest.mark.parametrize("page", ["fidelity", "reliability"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    names = set(re.findall(r"`(?:tests/)?(test_[\w*]+\.py)`", text))
    assert len(names) > 6
    for name in names:
        assert list((ROOT / "tests").glob(name)), name
