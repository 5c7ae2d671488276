"""Run the whole of it on the documentation that every Python carries: pretrain, fine-tune, evaluate, sample.

Everything is written to --output; the same command continues what was interrupted and shows what
is finished at once.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import gpt
from gpt import gin_io
from gpt.errors import DataError

TASKS = ("stdlib_area", "stdlib_next")
VOCAB_SIZE = 4000  # as in configs/model/tiny.gin
PROMPT = "Return the name of the"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="(default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=42, help="of weights, data order and dropout (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a result on standard output")


def run(args: argparse.Namespace) -> int:
    start = time.monotonic()
    output, runs = args.output, args.output / f"seed-{args.seed}"
    _prepare_data(output)
    common = [f"RunConfig.seed={args.seed}", f"TokenizerConfig.path={output / 'tokenizer'}"]

    files = ("run/pretrain", "model/tiny", "run/quickstart_pretrain")
    pretrained = runs / "pretrained"
    _train(files, pretrained, [*common, f"DataConfig.token_store={output / 'store'}"])
    for task in TASKS:
        files = (f"task/{task}", "model/tiny", "run/quickstart_finetune")
        data = f"TaskConfig.data_dir={output / 'corpus' / task}"
        _train(files, runs / f"{task}-pretrained", [*common, data, f"RunConfig.init_from={pretrained}"])
        _train(files, runs / f"{task}-random", [*common, data, "RunConfig.init_from=None"])

    _show_results(runs, args.json)
    _show_sample(pretrained, args.seed, args.json)
    _draw(runs)
    print(f"{time.monotonic() - start:.0f} s in all", file=sys.stderr)
    return 0


def _prepare_data(output: Path) -> None:
    """The corpus, a vocabulary trained on it, and its tokens."""
    from gpt.data.prepare import prepare
    from gpt.data.sources import read_documents
    from gpt.data.stdlib import read_corpus, write_corpus
    from gpt.text.tokenizer import Tokenizer
    from gpt.text.training import train_bpe

    corpus, tokenizer_dir = output / "corpus", output / "tokenizer"
    texts = [corpus / "text" / f"{split}.jsonl" for split in ("train", "validation")]
    if not tokenizer_dir.exists():
        try:
            write_corpus(read_corpus(), corpus)
        except OSError as error:
            raise DataError(f"--output {str(output)!r} cannot be written: {error}") from error
        train_bpe(read_documents([str(texts[0])]), VOCAB_SIZE).save(tokenizer_dir)
    if not (output / "store").exists():
        prepare([str(texts[0])], Tokenizer.load(tokenizer_dir), output / "store", validation=[str(texts[1])])


def _config_files(names: tuple[str, ...]) -> list[Path]:
    configs = Path(gpt.__file__).parents[1] / "configs"
    if not configs.is_dir():
        raise DataError(
            f"{str(configs)!r} is missing: run the quickstart from a checkout, installed with `pip install -e .`"
        )
    return [configs / f"{name}.gin" for name in names]


def _train(names: tuple[str, ...], run_dir: Path, overrides: list[str]) -> None:
    """Trains, or finds trained, one run, by the same call as train.py with the command shown."""
    from gpt.training.loop import train

    overrides = [f"RunConfig.output_dir={run_dir}", *overrides]
    flags = [f"--gin_file=configs/{name}.gin" for name in names] + [f"--gin.{setting}" for setting in overrides]
    print(f"\n$ python train.py {' '.join(flags)}", file=sys.stderr)
    train(gin_io.load(_config_files(names), overrides))


def _show_results(runs: Path, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from gpt.training.run_dir import read_result

    table = Table(title="Accuracy on held-out modules", title_justify="left")
    for column in ("task", "with pre-training", "without", "validation examples"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in TASKS:
        results = {init: read_result(runs / f"{task}-{init}") or {} for init in ("pretrained", "random")}
        scores = {init: result["validation"]["accuracy"] for init, result in results.items()}
        n = results["random"]["validation_examples"]
        table.add_row(task, f"{scores['pretrained']:.1%}", f"{scores['random']:.1%}", f"{n:,}")
        if as_json:
            for init, value in scores.items():
                print(json.dumps({"task": task, "init": init, "metric": "accuracy", "value": value, "n": n}))
    Console(stderr=True).print("\n", table)


def _show_sample(pretrained: Path, seed: int, as_json: bool) -> None:
    from gpt.generation.settings import Decoding
    from gpt.generation.texts import write_texts
    from gpt.training.model_dir import load_model

    decoding = Decoding(max_new_tokens=40, temperature=0.7, seed=seed)
    (sample,) = write_texts(load_model(pretrained), [PROMPT], decoding)
    text = PROMPT + sample.text
    print(f"\nSample, temperature 0.7: {text}", file=sys.stderr)
    if as_json:
        result: dict[str, Any] = {"prompt": PROMPT, "text": text}
        print(json.dumps(result))


def _draw(runs: Path) -> None:
    from gpt.evaluation.curves import draw_loss_curves

    draw_loss_curves([runs / "pretrained"], runs / "loss.png")
    print(f"\nLoss curve: {runs / 'loss.png'}", file=sys.stderr)
