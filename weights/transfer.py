"""What the shipped weights are worth: `python -m minitl.weights.transfer` prints the table.

scikit-learn's 1,797 handwritten digits, a few labels per class to train on, all others to test on. A
budget is a number of steps of batch 32 (or of all pictures where there are fewer), SGD with Nesterov
momentum 0.9, weight decay 5e-4, 10 steps of warm-up, half a cosine, no augmentation, the last step's
weights. Budgets and learning rates were fixed on splits 100 to 102 (--tune), where each rival got the
rate that was best for it; the table is of splits 0 to 4, which played no part in that.
"""

import argparse
import math
import platform

import numpy as np

from minitl import models, ops, optim
from minitl.data.digits import digit_pictures
from minitl.models import Classifier
from minitl.tensor import Tensor, no_grad
from minitl.weights import STROKES

BATCH, WARMUP = 32, 10
TUNING_SPLITS, SPLITS = range(100, 103), range(5)
LEARNING_RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
# The best on the tuning splits: budget in steps, rival, labels per class.
BEST_LR = {
    120: {"from scratch": {3: 0.1, 10: 0.1}, "fine-tuned": {3: 0.02, 10: 0.02}},
    40: {"from scratch": {3: 0.05, 10: 0.1}, "fine-tuned": {3: 0.05, 10: 0.05}},
}
RIVALS = ("from scratch", "fine-tuned", "frozen, logistic regression", "RBF-SVM on pixels")


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return all pictures as the network's input, (1797, 32, 32, 3) in [-1, 1], and their labels."""
    pictures, labels = digit_pictures()
    gray = (pictures.astype(np.float32) / 255 - 0.5) / 0.5
    return np.ascontiguousarray(np.repeat(gray[..., None], 3, axis=3)), labels


def split(labels: np.ndarray, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `per_class` pictures of each digit; return their numbers and those of all others."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(10)]
    train = np.concatenate(drawn)
    return train, np.setdiff1d(np.arange(len(labels)), train)


def start(pretrained: bool, seed: int) -> Classifier:
    """Return the shipped network with a new head, or the same network from scratch."""
    model = models.load_model(STROKES)
    if not pretrained:
        return models.create(model.arch, num_classes=10, seed=seed, **model.arch_options)
    model.replace_head(10, seed=seed)
    return model


def train(
    model: Classifier, x: np.ndarray, y: np.ndarray, *, steps: int, lr: float, seed: int
) -> None:
    """Train within a budget of steps."""
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = optim.cosine(steps, warmup_steps=WARMUP)
    rng = np.random.default_rng(seed)
    size = min(BATCH, len(x))
    waiting = np.empty(0, np.int64)
    model.train()
    for step in range(steps):
        if len(waiting) < size:
            waiting = rng.permutation(len(x))
        chosen, waiting = waiting[:size], waiting[size:]
        optimizer.lr_factor = schedule(step)
        ops.softmax_cross_entropy(model(Tensor(x[chosen])), y[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()


@no_grad()
def in_parts(model: Classifier, x: np.ndarray, features: bool = False) -> np.ndarray:
    """Return logits, or the trunk's features, in evaluation mode."""
    model.eval()
    run = model.features if features else model
    return np.concatenate([run(Tensor(x[i : i + 256])).numpy() for i in range(0, len(x), 256)])


def accuracy(
    name: str, x: np.ndarray, y: np.ndarray, per_class: int, seed: int, steps: int, lr: float
) -> float:
    """Return the test accuracy in percent of one rival on one split."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    chosen, others = split(y, per_class, seed)
    if name in ("from scratch", "fine-tuned"):
        model = start(name == "fine-tuned", seed)
        train(model, x[chosen], y[chosen], steps=steps, lr=lr, seed=seed)
        right = in_parts(model, x[others]).argmax(1) == y[others]
    elif name == "frozen, logistic regression":
        features = in_parts(start(True, seed), x, features=True)
        mean, deviation = features[chosen].mean(0), features[chosen].std(0)
        features = (features - mean) / (deviation + 1e-3)
        fitted = LogisticRegression(C=0.1, max_iter=1000).fit(features[chosen], y[chosen])
        right = fitted.predict(features[others]) == y[others]
    else:
        pixels = x[..., 0].reshape(len(x), -1)
        fitted = SVC(C=10).fit(pixels[chosen], y[chosen])
        right = fitted.predict(pixels[others]) == y[others]
    return 100 * float(right.mean())


def table(steps: int) -> None:
    """Print a Markdown table of mean and standard deviation over the splits."""
    x, y = digits()
    print(f"\n{steps} steps:\n\n| labels per class | {' | '.join(RIVALS)} | gain of fine-tuning |")
    print("|" + "---|" * (len(RIVALS) + 2))
    for k in (3, 10):
        results = {}
        for name in RIVALS:
            lr = BEST_LR[steps].get(name, {}).get(k, 0.0)
            results[name] = np.array([accuracy(name, x, y, k, s, steps, lr) for s in SPLITS])
        gains = results["fine-tuned"] - results["from scratch"]
        # Student's t for a mean of paired differences: 2.776 for five splits.
        half = 2.776 * gains.std(ddof=1) / math.sqrt(len(gains))
        cells = " | ".join(f"{r.mean():.1f} ± {r.std(ddof=1):.1f}" for r in results.values())
        print(f"| {k} | {cells} | {gains.mean():+.1f} (95 % interval ± {half:.1f}) |", flush=True)


def tune(steps: int) -> None:
    """Print the accuracy of every learning rate on the tuning splits."""
    x, y = digits()
    for k in (3, 10):
        for name in RIVALS[:2]:
            means = {
                lr: np.mean([accuracy(name, x, y, k, s, steps, lr) for s in TUNING_SPLITS])
                for lr in LEARNING_RATES
            }
            shown = ", ".join(f"{lr:g}: {mean:.1f}" for lr, mean in means.items())
            print(f"{steps} steps, {k} labels, {name}: {shown}", flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m minitl.weights.transfer",
        description="Print the table of weights/README.md.",
    )
    parser.add_argument(
        "--steps", type=int, nargs="+", default=list(BEST_LR), choices=list(BEST_LR)
    )
    parser.add_argument("--tune", action="store_true", help="try learning rates on other splits")
    options = parser.parse_args()
    for steps in options.steps:
        (tune if options.tune else table)(steps)
    print(f"\nPython {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}")


if __name__ == "__main__":
    main()
