"""The report: one file, nothing fetched from elsewhere, names escaped, pictures chosen rightly."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minitl import models
from minitl.data.folder import scan
from minitl.train import plots
from minitl.train.metrics import classification_metrics
from minitl.train.report_page import Judged, render

CLASSES = ["<script>alert(1)</script>", "$x_2$ & co"]


class Links(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def make_report(tmp_path: Path) -> tuple[str, Judged]:
    random = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        folder = tmp_path / name.replace("/", "_")
        folder.mkdir()
        for i in range(6):
            array = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(array).save(folder / f"{number}{i}.png")
    dataset = scan(tmp_path, val_fraction=0.5)
    model = models.create("cifar_resnet20", num_classes=2, seed=0, width=4)
    # Class by class: two of three right, with a confidence that falls from picture to picture.
    logits = np.array([[4, 0], [3, 0], [0, 2.5], [0, 4], [0, 3], [2, 0]], np.float32)
    labels = np.array([sample.label for sample in dataset.val])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    judged = Judged(
        "val", dataset.val, logits, classification_metrics(logits, labels, dataset.classes)
    )
    row = {
        "train_loss": 1.0,
        "val_loss": 1.1,
        "train_accuracy": 0.5,
        "val_accuracy": 0.6,
        "seconds": 65.0,
    }
    history = [{"epoch": 1.0, **row}, {"epoch": 2.0, **row}]
    html = render(
        title="run & <b>",
        lead="a network",
        model=model,
        dataset=dataset,
        history=history,
        judged=[judged],
        curves=plots.curves(history),
        confusions=[plots.confusion(judged.metrics["confusion"], dataset.classes)],
        seconds={"training": 130.0},
        config='data = "</pre>"',
    )
    return html, judged


def test_it_is_one_file_and_no_name_becomes_markup(tmp_path: Path) -> None:
    html, _ = make_report(tmp_path)
    page = Links()
    page.feed(html)
    assert page.sources and all(s.startswith("data:image/") for s in page.sources)
    assert "script" not in page.tags and "b" in page.tags
    assert "http" not in re.sub(r"data:image/[^\"]*", "", html)
    for text in ("<script>alert(1)<_script>", "$x_2$ & co", 'data = "</pre>"', "run & <b>"):
        assert text in page.text
    for source in page.sources:
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).verify()


def test_the_pictures_shown_are_those_announced(tmp_path: Path) -> None:
    html, judged = make_report(tmp_path)
    wrong = html[html.index("Wrong, and most sure") : html.index("Right, but least sure")]
    least = html[html.index("Right, but least sure") : html.index("Right and most sure")]
    most = html[html.index("Right and most sure") : html.index("<h2>Data")]
    names = [Path(sample.path).name for sample in judged.samples]

    def order(part: str) -> list[int]:
        return [names.index(name) for name in re.findall(r"(\d\d\.png)\s*</figcaption>", part)]

    assert order(wrong) == [2, 5]
    assert order(least) in ([1, 4, 0, 3], [4, 1, 3, 0])  # pairs are equally sure
    assert order(most) == [0, 3]
    assert wrong.count("Where the network sees") == 2


@pytest.mark.parametrize("classes", [2, 21, 45])
def test_plots_are_pictures_whatever_the_number_of_classes(classes: int) -> None:
    names = [f"class_{i} " + "long " * 8 for i in range(classes)]
    for content in (
        plots.confusion(np.eye(classes, dtype=int).tolist(), names),
        plots.reliability({"confidence": [None, 0.7], "accuracy": [None, 1.0], "images": [0, 3]}),
    ):
        assert Image.open(io.BytesIO(content)).format == "PNG"
