"""The README's promises that a program can check."""

import re
import shlex
from pathlib import Path

import pytest

from minitl import cli, models

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_library_snippet_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    (snippet,) = blocks("python")
    exec(snippet, names)
    assert names["loss"].item() > 0
    assert isinstance(names["model"], models.ResNet)
    assert (tmp_path / "model.h5").is_file()


def test_the_first_two_commands_are_the_demo_and_the_tests():
    main_job, tests = blocks("bash")[:2]
    assert main_job.strip().endswith("&& minitl finetune --demo")
    assert tests.strip().endswith("pytest -q -n auto")


@pytest.mark.parametrize("line", "".join(blocks("sh")).splitlines())
def test_every_command_shown_is_understood(line):
    command = shlex.split(line, comments=True)
    if command[0] == "minitl":
        assert callable(cli.parsers()[0].parse_args(command[1:]).run)


def test_what_it_links_to_and_shows_exists():
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)\)", README) if "://" not in t]
    assert "benchmarks/results/report.png" in targets
    for target in targets:
        assert (Path(__file__).parent.parent / target).exists(), target


def test_every_file_of_the_map_exists():
    root = Path(__file__).parent.parent
    tree = re.search(r"^```\n(minitl/ .*?)^```", README, re.MULTILINE | re.DOTALL)
    assert tree
    for line in tree[1].splitlines():
        name = line.split("  ")[0] if not line.startswith("  ") else "minitl/" + line.split()[0]
        for part in name.split(", "):
            assert (root / part.strip()).exists(), part
