"""What the end-to-end tests share: a toy language, commands run as a user would, and the flags of small runs."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt.data.prepare import prepare
from gpt.text.tokenizer import Tokenizer
from gpt.text.training import train_bpe

ROOT = Path(__file__).parents[1]
TINY_MODEL = (
    "--gin.ModelConfig.context_length=16",
    "--gin.ModelConfig.num_layers=2",
    "--gin.ModelConfig.num_heads=2",
    "--gin.ModelConfig.embed_dim=16",
    "--gin.ModelConfig.mlp_dim=32",
    "--gin.ModelConfig.init_std=0.1",
    "--gin.RunConfig.batch_size=8",
    "--gin.RunConfig.accumulation_steps=2",
    "--gin.RunConfig.num_epochs=3",
    "--gin.RunConfig.log_every_steps=1",
    "--gin.RunConfig.evaluate_every_steps=8",
)
SIGNAL_AT_STEP = """
import os, runpy, sys
from gpt.training.report import Report

number, last, advance = int(sys.argv[1]), int(sys.argv[2]), Report.advance

def advance_then_signal(self, step):
    advance(self, step)
    if step == last:
        os.kill(os.getpid(), number)

Report.advance = advance_then_signal
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Command(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The JSON lines of standard output."""
        return [json.loads(line) for line in self.out.splitlines()]


def run_python(*arguments: str | Path) -> Command:
    """Runs this interpreter on `arguments` in the repository, as a user would, with no terminal."""
    process = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return Command(process.returncode, process.stdout, process.stderr)


def run_until(number: signal.Signals, step: int, flags: Sequence[str], script: str = "train.py") -> Command:
    """Runs the script on `flags` in a process that gets the signal once `step` is made."""
    return run_python("-c", SIGNAL_AT_STEP, str(int(number)), str(step), script, *flags)


def toy_sentences(seed: int, count: int) -> list[str]:
    """Sentences with an order to learn: animal, verb, place and time go together."""
    animals, verbs = ("cat", "dog", "frog", "horse"), ("sleeps", "runs", "jumps", "waits")
    places, times = ("house", "garden", "river", "stable"), ("morning", "evening", "night", "winter")
    draw = random.Random(seed).randrange
    return [
        f"the {animals[k]} {verbs[k]} near the {places[k]} in the {times[k]} ."
        for k in (draw(len(animals)) for _ in range(count))
    ]


def write(name: str, text: str) -> str:
    """Writes a file, and the directories for it; its name."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Toy(NamedTuple):
    """Directories with everything that a run needs, and the flags that name them."""

    tokenizer: Path
    store: Path
    cola: Path
    choices: Path

    @property
    def pretrain_flags(self) -> tuple[str, ...]:
        """All of train.py's flags but the output: 24 updates, 2.7 epochs, dropout on."""
        return (
            "--gin_file=configs/run/pretrain.gin",
            *TINY_MODEL,
            f"--gin.ModelConfig.vocab_size={Tokenizer.load(self.tokenizer).vocab_size}",
            f"--gin.TokenizerConfig.path={self.tokenizer}",
            f"--gin.DataConfig.token_store={self.store}",
            "--gin.RunConfig.max_steps=24",
            "--gin.OptimizerConfig.learning_rate=0.01",
            "--gin.OptimizerConfig.warmup_steps=2",
            "--gin.CheckpointConfig.save_every_steps=10",
        )

    def finetune_flags(self, init_from: Path | None) -> tuple[str, ...]:
        """All of train.py's flags but the output: 15 updates, 3 epochs, dropout on."""
        return (
            "--gin_file=configs/task/cola.gin",
            *TINY_MODEL,
            f"--gin.ModelConfig.vocab_size={Tokenizer.load(self.tokenizer).vocab_size}",
            f"--gin.TokenizerConfig.path={self.tokenizer}",
            f"--gin.TaskConfig.data_dir={self.cola}",
            f"--gin.RunConfig.init_from={init_from}",
            "--gin.OptimizerConfig.learning_rate=0.01",
            "--gin.CheckpointConfig.save_every_steps=6",
        )


class Run(NamedTuple):
    """A finished run, and the command that made it."""

    path: Path
    flags: tuple[str, ...]
    command: Command


def train_to(path: Path, flags: Sequence[str]) -> Run:
    """The run of train.py on `flags` in `path`."""
    flags = (*flags, f"--gin.RunConfig.output_dir={path}")
    command = run_python("train.py", *flags)
    assert command.code == 0, command.err
    return Run(path, flags, command)


def make_toy(root: Path) -> Toy:
    """The toy language as a vocabulary, a token store and two tasks; examples of `choices` have two or three."""
    toy = Toy(root / "tokenizer", root / "store", root / "cola", root / "choices")
    texts = {"train": toy_sentences(0, 120), "validation": toy_sentences(1, 29)}
    tokenizer = train_bpe(texts["train"], 100)
    tokenizer.save(toy.tokenizer)
    for split, sentences in texts.items():
        write_rows(root / f"{split}.jsonl", [{"text": text} for text in sentences])
        write_rows(toy.cola / f"{split}.jsonl", [_is_a_pet(text) for text in sentences[:43]])
        write_rows(toy.choices / f"{split}.jsonl", [_which_verb(text, k < 9) for k, text in enumerate(sentences[:19])])
    prepare([str(root / "train.jsonl")], tokenizer, toy.store, validation=[str(root / "validation.jsonl")])
    return toy


def _is_a_pet(text: str) -> dict[str, Any]:
    return {"text": " ".join(text.split()[:6]), "label": int("cat" in text or "dog" in text)}


def _which_verb(text: str, is_short: bool) -> dict[str, Any]:
    """An example of two candidates behind a short context, or of three behind a longer one."""
    words = text.split()
    if is_short:
        return {"context": words[1], "choices": [words[2], "river"], "label": 0}
    return {"context": f"in the {words[8]} the {words[1]}", "choices": ["river", words[2], "garden"], "label": 1}
