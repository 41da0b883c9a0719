"""Metrics on predictions whose figures are known by counting."""

import json

import numpy as np
import pytest

from minitl.train.metrics import calibration, classification_metrics


def logits_for(probabilities: list[list[float]]) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


def test_figures_by_counting() -> None:
    logits = logits_for([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    labels = np.array([0, 1, 1, 0])
    result = classification_metrics(logits, labels, ["a", "b", "c"])
    assert result["images"] == 4 and result["accuracy"] == 0.5
    expected = -np.log([0.7, 0.5, 0.3, 0.1]).mean()
    assert result["loss"] == pytest.approx(expected, rel=1e-6)
    assert result["confusion"] == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert result["per_class"]["a"] == {"images": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert result["per_class"]["b"]["precision"] == 1.0
    assert result["per_class"]["c"] == {"images": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert result["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert "top5" not in result
    json.dumps(result)


def test_classes_that_do_not_occur_are_not_in_the_mean() -> None:
    """A part of ImageNet's classes, judged by a network of all."""
    logits = np.eye(1000, dtype=np.float32)[[3, 3, 7]]
    result = classification_metrics(logits, np.array([3, 3, 8]), [str(n) for n in range(1000)])
    assert result["macro_f1"] == pytest.approx(1 / 3)  # 3: 1, 7 and 8: 0


def test_top5_where_there_are_more_classes() -> None:
    logits = np.tile(np.arange(7, dtype=np.float32), (3, 1))  # the best five are classes 2 to 6
    result = classification_metrics(logits, np.array([6, 2, 1]), list("abcdefg"))
    assert result["top5"] == pytest.approx(2 / 3)


def test_huge_logits_have_a_finite_loss() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    assert classification_metrics(logits, np.array([0, 1]), ["a", "b"])["loss"] == 0
    assert classification_metrics(logits, np.array([1, 1]), ["a", "b"])["loss"] == 1e4


def test_calibration_by_counting() -> None:
    probabilities = np.array([[0.95, 0.05], [0.92, 0.08], [0.35, 0.65], [1.0, 0.0]])
    result = calibration(probabilities, np.array([0, 1, 1, 0]))
    assert result["images"] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 3]
    assert result["confidence"][9] == pytest.approx((0.95 + 0.92 + 1.0) / 3)
    assert result["accuracy"][9] == pytest.approx(2 / 3) and result["accuracy"][0] is None
    gap = abs(0.65 - 1) * 1 + abs(0.95 + 0.92 + 1.0 - 2)
    assert result["expected_error"] == pytest.approx(gap / 4)


def test_honest_confidence_has_a_small_error() -> None:
    random = np.random.default_rng(0)
    sure = random.uniform(0.5, 1, 20000)
    right = random.random(20000) < sure
    probabilities = np.stack([sure, 1 - sure], axis=1)
    labels = np.where(right, 0, 1)
    assert calibration(probabilities, labels)["expected_error"] < 0.01
    assert calibration(probabilities, np.zeros_like(labels))["expected_error"] > 0.2
