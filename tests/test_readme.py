"""Every command of the README is run as it stands, or is a target of the Makefile that continuous integration runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.data.stdlib import read_corpus

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
WALK_THROUGH = "".join(block for block in BLOCKS if "gpt " in block)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like a checkout, with a few books and a small CoLA."""
    directory = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "train.py", "eval.py"):
        (directory / name).symlink_to(ROOT / name)
    (directory / "books").mkdir()
    documents = read_corpus().train
    for number in range(20):
        paragraphs = [text for document in documents[number::20] for text in document.paragraphs]
        (directory / "books" / f"{number}.txt").write_text("\n".join(paragraphs))
    cola = directory / "data" / "cola"
    cola.mkdir(parents=True)
    for split, count in (("train", 96), ("validation", 20)):
        rows = [{"text": f"The cat number {n} sleeps.", "label": n % 2} for n in range(count)]
        (cola / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_the_walk_through_runs_as_it_stands(checkout: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", WALK_THROUGH], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"language_modeling: perplexity [\d.]+ over \d+ at step 20", done.stdout)
    rows = [json.loads(line) for line in done.stdout.splitlines() if '"metric"' in line]
    assert {row["metric"]: row["n"] for row in rows if row["task"] == "cola"}["matthews"] == 20
    scored = next(json.loads(line) for line in done.stdout.splitlines() if '"logprobs"' in line)
    (encoded,) = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert scored["ids"] == json.loads(encoded)
    assert len(scored["logprobs"]) == len(scored["ids"]) > 3
    written = [json.loads(line) for line in done.stdout.splitlines() if '"finish_reason"' in line]
    assert [len(row["ids"]) for row in written] == [8, 8, 20, 20]
    assert [row["prompt"] for row in written[:2]] == ["The module", "Return the"]
    assert re.search(r"^Return the name of.{20}", done.stdout, re.MULTILINE)
    assert re.search(r"^\d+ tokens, log-probability -[\d.]+, perplexity [\d.]+$", done.stdout, re.MULTILINE)
    assert re.findall(r"cola, (\d) of 4 layers transferred: matthews median", done.stdout) == ["2", "4"]
    assert "cola: no runs for no pre-training, 0, 1, 3" in done.stderr
    assert re.search(r"cola: matthews \S+ over 20 at step 20", done.stdout)
    for name in ("index.json", "train.bin", "validation.bin"):
        assert (checkout / "runs/carried" / name).read_bytes() == (checkout / "runs/store" / name).read_bytes()
    for name in ("loss", "layers", "zero_shot"):
        assert (checkout / "runs" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^make (\w+)", "\n".join(BLOCKS), re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets == {"quickstart", "test", "lint", "bench"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_make_installs_the_way_the_readme_says() -> None:
    install = re.search(r"pip install (--constraint \S+) (--editable) \.", "\n".join(BLOCKS))
    assert install
    assert all(part in (ROOT / "Makefile").read_text() for part in install.groups())


def test_every_path_of_the_file_map_exists() -> None:
    table = (ROOT / "README.md").read_text().split("## What is where")[1].split("##")[0]
    paths = [
        path
        for line in table.splitlines()
        for path in re.findall(r"`([\w./]+)`", line.split("|")[1] if "|" in line else "")
    ]
    assert len(paths) > 12
    for path in paths:
        assert (ROOT / path).exists(), path
