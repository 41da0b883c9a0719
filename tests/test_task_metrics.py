"""The figures of several tasks, against counting and scikit-learn's."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, r2_score

from minitl.data.dataset import Dataset
from minitl.tasks import Task
from minitl.train.figures import (
    best_of,
    columns,
    history_figures,
    loss_of_guessing,
    metrics_in_words,
)
from minitl.train.task_metrics import answers, task_metrics
from minitl.train.task_report import tiles
from tests.reference.task_loss import task_loss
from tests.test_task_loss import DESCRIBED, TASKS, known, outputs_of


def test_answers_are_probabilities_and_numbers_in_their_unit():
    outputs = np.array([[1.0, 2.0, 1000.0, 0.0, -1000.0, 0.5, 2.0]], np.float32)
    said = answers(TASKS, outputs)[0]
    assert said[:3].tolist() == [0, 0, 1]
    assert said[3:5].tolist() == [0.5, 0.0]
    assert said[5] == pytest.approx(1 / (1 + math.exp(-0.5)), rel=1e-14)
    assert said[6] == 30 + 2 * 12 / 3
    assert outputs[0, 6] == 2  # as it was


def test_figures_of_what_is_known():
    outputs, targets = outputs_of(200, 2.0), known(200, 0.3)
    said = answers(TASKS, outputs)
    figures = task_metrics(said, targets, TASKS)
    assert figures["images"] == 200
    assert figures["loss"] == pytest.approx(task_loss(outputs, targets, DESCRIBED), rel=1e-9)
    kind, tags, one, age = figures["tasks"].values()

    there = ~np.isnan(targets[:, 0])
    assert kind["images"] == there.sum() < 200
    right = outputs[there, :3].argmax(1) == targets[there, 0]
    assert kind["accuracy"] == right.mean()

    there = ~np.isnan(targets[:, 1])
    truth, shares = targets[there, 1:3], said[there, 3:5]
    assert tags["images"] == there.sum()
    average = average_precision_score(truth, shares, average=None)
    assert tags["map"] == pytest.approx(average.mean())
    assert tags["macro_f1"] == pytest.approx(f1_score(truth, shares >= 0.5, average="macro"))
    assert tags["exact"] == ((shares >= 0.5) == truth).all(1).mean()
    row = tags["per_label"]["round"]
    assert row["images"] == truth[:, 1].sum()
    assert row["precision"] == pytest.approx(precision_score(truth[:, 1], shares[:, 1] >= 0.5))
    assert row["average_precision"] == pytest.approx(average[1])
    assert list(one["per_label"]) == ["alone"]

    there = ~np.isnan(targets[:, 4])
    error = said[there, 6] - targets[there, 4]
    assert age["mae"] == pytest.approx(np.abs(error).mean())
    assert age["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert age["r2"] == pytest.approx(r2_score(targets[there, 4], said[there, 6]))

    scores = [kind["accuracy"], tags["map"], one["map"], max(age["r2"], 0)]
    assert figures["score"] == pytest.approx(np.mean(scores))


def test_a_threshold_trades_precision_for_recall():
    task = (Task("tags", "labels", ("red",)),)
    said, targets = np.array([[0.2], [0.4], [0.6], [0.9]]), np.array([[0.0], [1], [0], [1]])
    rows = [
        task_metrics(said, targets, task, threshold)["tasks"]["tags"]["per_label"]["red"]
        for threshold in (0.1, 0.5, 0.7)
    ]
    assert [row["recall"] for row in rows] == [1, 0.5, 0.5]
    assert [row["precision"] for row in rows] == [0.5, 0.5, 1]


def test_what_cannot_be_said_is_left_out():
    """A label that all or no pictures have, one number again and again, a task nobody knows of."""
    tasks = (*TASKS[1:], Task("empty", "number", mean=1.0, std=2.0))
    targets = np.array([[0.0, 1, np.nan, 5, np.nan], [1, 1, np.nan, 5, np.nan]])
    said = np.array([[0.1, 0.9, 0.5, 5, 1], [0.8, 0.9, 0.5, 6, 1]])
    figures = task_metrics(said, targets, tasks)
    tags, one, age, empty = figures["tasks"].values()
    assert tags["per_label"]["red"]["average_precision"] == tags["map"] == 1
    assert tags["per_label"]["round"]["average_precision"] is None
    assert one == {"kind": "labels", "images": 0} and empty == {"kind": "number", "images": 0}
    assert age["r2"] is None and age["mae"] == 0.5
    assert figures["score"] == 1  # of the tags alone
    assert math.isfinite(figures["loss"])
    row = history_figures(figures)
    assert math.isnan(row["val_age_r2"]) and row["val_age_mae"] == 0.5
    assert row.keys() <= set(columns(tasks))
    assert metrics_in_words(figures) == (
        "score 100.0 %: tags mAP 100.0 %, macro F1 100.0 %; one unknown; age MAE 0.5; empty unknown"
    )


def test_the_best_epoch_is_that_of_the_score_then_of_the_loss():
    rows = [
        {"epoch": 1.0, "val_score": 0.5, "val_loss": 1.0},
        {"epoch": 2.0, "val_score": 0.7, "val_loss": 2.0},
        {"epoch": 3.0, "val_score": 0.7, "val_loss": 1.5},
    ]
    assert best_of(rows)["epoch"] == 3


def test_a_tile_of_a_number_that_is_worse_than_its_mean():
    figures = {"kind": "number", "r2": -0.041}
    tasks = {"age": figures, "pose": {"kind": "labels", "map": 0.5}, "none": {"kind": "classes"}}
    assert tiles({"score": 0.25, "tasks": tasks}, "test") == [
        ("score on test", "25.0 %"),
        ("age: R2", "-0.041"),
        ("pose: mAP", "50.0 %"),
    ]


def test_what_knowing_nothing_costs(tmp_path):
    outputs = np.zeros((50, 7))  # all classes and labels alike, a number in the middle
    targets = known(50, 0.0)
    targets[:, -1] = np.where(np.arange(50) % 2, 30 - 12, 30 + 12)  # one deviation off
    data = Dataset(tmp_path, [], [], [], tasks=tuple(TASKS), targets=targets)
    said = task_loss(outputs, targets, DESCRIBED)
    assert loss_of_guessing(data) == pytest.approx(said, rel=1e-9)
    assert loss_of_guessing(Dataset(tmp_path, ["a", "b", "c"], [], [])) == math.log(3)
