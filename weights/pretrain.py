"""The recipe of the shipped weights: `python -m minitl.weights.pretrain --out FILE.h5`.

A CIFAR ResNet-20 learns to tell random letters apart (strokes.py). SGD with Nesterov momentum, warm-up
and half a cosine. Batches are drawn in a thread while the step before runs.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from minitl import hdf5, models, ops, optim
from minitl.convert.golden import make_golden
from minitl.models.saving import to_weights_file
from minitl.tensor import Tensor
from minitl.train.console import Progress, percent, say
from minitl.weights.strokes import draw, make_alphabet

PREPROCESSING = {
    "resize": 32,
    "crop": 32,
    "interpolation": "bilinear",
    "channel_order": "RGB",
    "scale": 1 / 255,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


def batches(
    letters: int, count: int, size: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `count` batches of normalised pictures and labels; the next one is drawn meanwhile."""
    rng = np.random.default_rng(seed)
    alphabet = make_alphabet(letters, rng)

    def next_batch() -> tuple[np.ndarray, np.ndarray]:
        pictures, labels = draw(alphabet, size, rng)
        return np.ascontiguousarray((pictures - 0.5) / 0.5, np.float32), labels

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next_batch)
        for _ in range(count):
            batch = coming.result()
            coming = thread.submit(next_batch)
            yield batch


def pretrain(
    out: Path, *, letters: int, steps: int, batch: int, lr: float, width: int, seed: int
) -> None:
    """Train from scratch and write the weights file."""
    model = models.cifar_resnet20(num_classes=letters, seed=seed, shortcut="B", width=width)
    model.preprocessing = PREPROCESSING
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = optim.cosine(steps, warmup_steps=100)
    right = loss_now = 0.0
    with Progress("pretraining", steps * batch) as progress:
        for step, (pictures, labels) in enumerate(batches(letters, steps, batch, seed)):
            optimizer.lr_factor = schedule(step)
            logits = model(Tensor(pictures))
            loss = ops.softmax_cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            share = float((logits.numpy().argmax(1) == labels).mean())
            right, loss_now = (
                0.99 * old + 0.01 * new for old, new in ((right, share), (loss_now, loss.item()))
            )
            progress.update(
                batch, f"step {step + 1}, loss {loss_now:.3f}, accuracy {percent(right)}"
            )
    settings = f"letters={letters} steps={steps} batch={batch} lr={lr} width={width} seed={seed}"
    contents = to_weights_file(model, source=f"minitl.weights.pretrain, {settings}", license="MIT")
    contents.golden = make_golden(contents, str(out))
    hdf5.write(out, contents)
    say(f"{out}: accuracy on new letters {percent(right)} (running mean), {settings}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m minitl.weights.pretrain",
        description="Make the pretrained weights that ship with minitl.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the weights file to write")
    for name, default in {
        "letters": 200,
        "steps": 12000,
        "batch": 64,
        "lr": 0.1,
        "width": 16,
        "seed": 0,
    }.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=" ")
    pretrain(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
