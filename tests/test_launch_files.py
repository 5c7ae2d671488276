"""The files in configs/launch: each can be read, and the training that it starts has a config and runs."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from toy import ROOT, Toy, run_python

from gpt import gin_io
from gpt.training.run_dir import read_metrics

FILES = sorted((ROOT / "configs" / "launch").iterdir())


def commands_of(file: Path) -> list[list[str]]:
    """The flags of every train.py in a file."""
    text = file.read_text()
    if file.suffix == ".yaml":
        jobs = yaml.safe_load(text)["spec"]["replicatedJobs"]
        pods = [job["template"]["spec"]["template"]["spec"] for job in jobs]
        commands = [shlex.join(container["command"]) for pod in pods for container in pod["containers"]]
    else:
        commands = text.replace("\\\n", " ").splitlines()
    found = [re.search(r"train\.py((?: +--gin\S+?)+)(?=\"|\s|$)", command) for command in commands]
    return [shlex.split(match[1]) for match in found if match]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_launch_file_is_read_and_its_training_has_a_config(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if file.suffix == ".sh":
        subprocess.run(["bash", "-n", str(file)], check=True)
    monkeypatch.chdir(ROOT)
    (flags,) = commands_of(file)
    files = [flag.removeprefix("--gin_file=") for flag in flags if flag.startswith("--gin_file=")]
    settings = [flag.removeprefix("--gin.") for flag in flags if flag.startswith("--gin.")]
    assert len(files) + len(settings) == len(flags) >= 4
    config = gin_io.load(files, settings)
    assert config.is_pretraining
    assert config.output_dir == "/shared/runs/pretrained"


def test_the_page_on_pods_has_every_launch_file() -> None:
    page = (ROOT / "docs" / "pods.md").read_text()
    assert set(re.findall(r"configs/launch/([\w.]+)", page)) == {file.name for file in FILES}
    for path in re.findall(r"`((?:configs|gpt|docs)/[\w./]+)`", page):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_training_of_a_launch_file_runs_in_two_processes(file: Path, toy: Toy, tmp_path: Path) -> None:
    (flags,) = commands_of(file)
    small = {flag.split("=")[0]: flag for flag in toy.pretrain_flags if not flag.startswith("--gin_file")}
    small["--gin.RunConfig.output_dir"] = f"--gin.RunConfig.output_dir={tmp_path / 'run'}"
    small["--gin.RunConfig.max_steps"] = "--gin.RunConfig.max_steps=2"
    kept = [flag for flag in flags if flag.split("=")[0] not in small]
    command = run_python("-m", "gpt", "launch", "--processes", "2", "--", "train.py", *kept, *small.values())
    assert command.code == 0, command.err
    assert read_metrics(tmp_path / "run")[-1]["step"] == 2
