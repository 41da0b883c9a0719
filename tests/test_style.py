"""Lint, format and types are held by the tests, with the settings in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*command, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def test_lint():
    run("ruff", "check", "--no-cache")


def test_format():
    run("ruff", "format", "--check", "--no-cache")


def test_types(tmp_path):
    # Type checkers do not follow the mapping of folders in pyproject.toml: give them the installed layout.
    for folder, place in (
        ("minitl", "minitl"),
        ("kernels", "minitl/kernels"),
        ("weights", "minitl/weights"),
    ):
        for source in (ROOT / folder).rglob("*.py"):
            target = tmp_path / place / source.relative_to(ROOT / folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    settings = f"--config-file={ROOT / 'pyproject.toml'}"
    run("mypy", settings, f"--cache-dir={os.devnull}", "-p", "minitl", cwd=tmp_path)
