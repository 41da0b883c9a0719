"""Products by warpgroups: the trial on a card, and what its verdict decides. Here the card is the checker."""

import contextlib
import os
import subprocess
import sys
import time
from unittest import mock

import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels import cuda
from minitl.kernels.cuda import compiler, warpgroup_trial, warpgroups
from minitl.shapes import padding2d
from tests.cuda_launch import launched, needs_checker
from tests.cuda_on_cpu import fake_cupy

VERDICT = warpgroups.verdict
# Pixels enough for 128 blocks of 128 each.
PICTURES, FILTERS = (4, 64, 64, 64), (64, 1, 1, 64)


@pytest.fixture
def verdicts(tmp_path, monkeypatch):
    """No verdict has been found yet, and those that are go to a folder of the test's own."""
    monkeypatch.setattr(compiler, "cache_folder", lambda: tmp_path)
    warpgroups._passed.cache_clear()
    yield tmp_path
    warpgroups._passed.cache_clear()


@contextlib.contextmanager
def card(verdict, **settings):
    """The fake of a card, which else comes with the verdict "passed"."""
    with fake_cupy.install(**settings) as gpu, mock.patch.object(warpgroups, "verdict", verdict):
        yield gpu


def ends_with(status, out="", err=""):
    return lambda command, **_: subprocess.CompletedProcess(command, status, out, err)


@needs_checker
def test_the_trial_passes_and_finds_a_wrong_number(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trial", "0"])
    with fake_cupy.install():
        with launched() as found:
            warpgroup_trial.main()
        assert capsys.readouterr().out == f"{warpgroups.PASSED}\n"
        sizes = {(name, dict(v)["WM"], dict(v)["WN"]) for _, name, v in found if "WM" in dict(v)}
        for kernel in ("conv2d_forward", "conv2d_dx", "conv2d_dw"):
            assert {size[1:] for size in sizes if size[0] == kernel} == {
                (32, 32),
                (16, 128),
                (16, 64),
            }
        right = warpgroup_trial.results

        def wrong(tile):
            y, dx, dw = right(tile)
            dw[3, 1, 1, 5] += tile.by_warpgroup
            return [y, dx, dw]

        monkeypatch.setattr(warpgroup_trial, "results", wrong)
        warpgroup_trial.main()
        said = capsys.readouterr().out
        assert "dw in tiles of 128 x 128: 1 of 58752 numbers; dw in tiles of 128 x 64" in said


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (ends_with(0, "noise\npassed\n"), "passed"),
        (
            ends_with(0, "they differ in y in tiles of 128 x 64: 3 of 5 numbers\n"),
            "they differ in y",
        ),
        (
            ends_with(1, "", "Traceback\n  ...\nCUDADriverError: illegal instruction\n"),
            "illegal instruc",
        ),
        (ends_with(-11), "ended with status -11"),
        (OSError("no memory"), "did not start: no memory"),
        (subprocess.TimeoutExpired("trial", warpgroups.SECONDS), "did not end within 300 seconds"),
    ],
)
def test_the_verdict_decides_and_is_kept(verdicts, monkeypatch, capsys, outcome, said):
    def run(*args, **options):
        tried.append(args)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome(*args, **options)

    tried = []
    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        with card(VERDICT):
            assert warpgroups.usable() == (said == "passed")
            assert said in warpgroups.verdict(0)
        error = capsys.readouterr().err
        assert (f"delete {next(verdicts.iterdir())}" in error) == (said != "passed")
        assert (said in error and "cuda:0" in error) if said != "passed" else not error
        warpgroups._passed.cache_clear()  # as in another process
    assert len(tried) == 1
    (kept,) = verdicts.iterdir()
    assert kept.suffix == ".txt"
    os.utime(kept, (0, time.time() - warpgroups.LATER - 1))
    with card(VERDICT):
        warpgroups.verdict(0)
    ended = said == "passed" or said.startswith("they differ")
    assert len(tried) == (1 if ended else 2)  # a full card, say, is no property of the card


@pytest.mark.parametrize("verdict", [warpgroups.PASSED, "they differ"])
@needs_checker
def test_large_products_in_bfloat16_are_theirs_where_they_passed(verdicts, verdict):
    with card(lambda device: verdict) as gpu, launched() as found:
        x = gpu.cupy.zeros(PICTURES, "uint16")
        weight = gpu.cupy.zeros(FILTERS, "float32")
        cuda.conv2d_forward(x, weight, None, (1, 1), padding2d(0), (1, 1), 1)
    (used,) = {dict(v)["WGMMA"] for _, name, v in found if name == "conv2d_forward"}
    assert used == (verdict == warpgroups.PASSED)


def test_other_cards_are_not_tried(verdicts, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    with card(VERDICT, compute_capability="80"):
        assert not warpgroups.usable()


def test_a_block_can_decide():
    with card(lambda device: "they differ"), warpgroups.decided(True):
        assert warpgroups.usable()
        with warpgroups.decided(False):
            assert not warpgroups.usable()
        assert warpgroups.usable()
    with card(VERDICT, compute_capability="80"), warpgroups.decided(True):
        assert not warpgroups.usable()  # it does not have them
