"""Four CPU devices for the sharding tests, and shapes and types checked at every call of `gpt`."""

import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("gpt", "beartype.beartype")  # before the first import of gpt
# Each worker of pytest-xdist has a cache of its own: JAX warns of an entry that another one has half written.
cache = Path.home() / ".cache" / "gpt-jax" / os.environ.get("PYTEST_XDIST_WORKER", "")
jax.config.update("jax_compilation_cache_dir", str(cache))
# A device that waits for the others in a collective holds a thread of the pool that they compute
# with. A pool of as many threads as devices runs dry, and XLA aborts the process after a while:
# in half of the runs on two cores. Child processes see one device and the usual pool.
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_platforms", "cpu")  # libtpu, where it is installed to compile for TPUs, would look for one
os.environ["NPROC"] = "16"  # read once, when the devices are made
jax.devices()
del os.environ["NPROC"]

from toy import ROOT, Command, Run, Toy, make_toy, train_to  # noqa: E402 - imports gpt, after the hook


@pytest.fixture(scope="session")
def assets() -> Path:
    """The directory with OpenAI's files and real data sets, named by GPT_TEST_ASSETS."""
    if "GPT_TEST_ASSETS" not in os.environ:
        pytest.skip("GPT_TEST_ASSETS is not set: it names a directory with OpenAI's files and real data")
    return Path(os.environ["GPT_TEST_ASSETS"])


@pytest.fixture(scope="session", autouse=True)
def _yardstick() -> Iterator[None]:
    """Runs of this process take no seconds to measure a product of large matrices; those of child processes do."""
    from gpt.training import meter

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(meter, "measure_flops", lambda _: 1e12)
        yield


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A vocabulary, a token store, and two labelled tasks of the toy language."""
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def pretrained(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of pretraining that nothing disturbed."""
    return train_to(tmp_path_factory.mktemp("runs") / "pretrained", toy.pretrain_flags)


@pytest.fixture(scope="session")
def finetuned(toy: Toy, pretrained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of fine-tuning on the toy `cola` that nothing disturbed."""
    return train_to(tmp_path_factory.mktemp("runs") / "finetuned", toy.finetune_flags(pretrained.path))


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Command]:
    """Runs eval.py here."""
    from gpt.cli.start import run_guarded

    main = runpy.run_path(str(ROOT / "eval.py"))["main"]
    monkeypatch.chdir(ROOT)

    def evaluate(*flags: str) -> Command:
        code = run_guarded(lambda: main(flags))
        captured = capsys.readouterr()
        return Command(code, captured.out, captured.err)

    return evaluate


@pytest.fixture
def gpt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Command]:
    """Runs the `gpt` command here."""
    from gpt.cli.main import main

    def gpt(*arguments: str | Path) -> Command:
        monkeypatch.setattr(sys, "argv", ["gpt", *map(str, arguments)])
        code = main()
        captured = capsys.readouterr()
        return Command(code, captured.out, captured.err)

    return gpt


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gpt prepare` cuts text into parts of 500 characters."""
    from gpt.data import parts

    monkeypatch.setattr(parts, "_PART_LENGTH", 500)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gpt prepare` encodes here instead of in new processes, to test the rest in milliseconds."""
    from concurrent.futures import ThreadPoolExecutor

    from gpt.data import parts

    monkeypatch.setattr(parts, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))
