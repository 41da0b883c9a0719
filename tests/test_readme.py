"""The README's promises that a program can check."""

import fnmatch
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


ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("package", ["data", "train"])
def test_every_module_is_in_the_map_of_its_package(package):
    folder = ROOT / "minitl" / package
    text = (folder / "__init__.py").read_text(encoding="utf-8")
    named = re.findall(r"^    (\w+\.py)  +\S", text, re.MULTILINE)
    there = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    assert sorted(named) == sorted(there)


# Folder: the README that names all modules in it, by file or by pattern.
NAMED_IN = {
    "minitl": "README.md",
    "kernels/cpu": "kernels/README.md",
    "kernels/cuda": "kernels/README.md",
    "benchmarks": "benchmarks/README.md",
    "benchmarks/gpu": "benchmarks/README.md",
    "tests": "tests/README.md",
}


def modules_of(folder):
    """Return what is to be named: files and packages, but for tests and what Python itself names."""
    paths = [p for p in (ROOT / folder).iterdir() if p.suffix in (".py", ".cu", ".cuh")]
    paths += [p.parent for p in (ROOT / folder).glob("*/__init__.py")]
    return sorted(p.name for p in paths if not p.name.startswith(("__", "test_")))


def unnamed(folder, text):
    """Return the modules that a text does not name; a launcher is named with its kernel, `x.cu`."""
    names = set(re.findall(r"[\w*]+\.(?:py|cuh?)\b|\w+(?=/)", text))
    patterns = [name for name in names if not name.startswith("*")]
    named = [m for m in modules_of(folder) if any(fnmatch.fnmatchcase(m, p) for p in patterns)]
    named += [m.replace(".cu", ".py") for m in named if m.endswith(".cu")]
    return [module for module in modules_of(folder) if module not in named]


@pytest.mark.parametrize("folder", NAMED_IN)
def test_every_module_is_named(folder):
    text = (ROOT / NAMED_IN[folder]).read_text(encoding="utf-8")
    table = re.search(rf"^\| In `{Path(folder).name}/` .*?\n\n", text, re.MULTILINE | re.DOTALL)
    assert unnamed(folder, table[0] if table else text) == []


def test_the_check_misses_what_is_not_named():
    assert "pool.py" in unnamed("kernels/cpu", "`conv2d*.py`, `adaptive_pool.py`, `*.py`")
    assert "pool.py" not in unnamed("kernels/cuda", "`pool.cu`")
    assert "tasks.py" in unnamed("minitl", "`task.py`") and "ops" not in unnamed("minitl", "ops/")
