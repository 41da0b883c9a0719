"""One network in one framework, in a process of its own: takes a step whenever a line comes in.

    python -m benchmarks.contender '{"engine": "minitl", "task": "training", ...}'

Answers are JSON, one line each: first {"ready": true}, then for each line read the seconds of a step, the
loss (or some logits), and what the process has cost so far. It ends with its input.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LR, MOMENTUM = 0.01, 0.9
Step = Callable[[], Any]


def batch(spec: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (N, H, W, 3), float32, and labels."""
    rng = np.random.default_rng(0)
    n, size = spec["batch"], spec["size"]
    images = rng.standard_normal((n, size, size, 3), dtype=np.float32)
    return images, rng.integers(0, 1000, n)


def minitl_step(spec: dict[str, Any]) -> Step:
    """Return the step of our engine, through the interface that everybody uses."""
    import minitl
    from minitl import models, ops, optim
    from minitl.kernels.cpu import on_first_compile

    on_first_compile(lambda: None, training=spec["task"] == "training")  # as `minitl finetune` does
    if spec["conv"] != "auto":
        from minitl.kernels.cpu.conv2d import set_conv_algorithm

        set_conv_algorithm(spec["conv"])
    model = models.create(spec["model"], seed=None)
    model.load_state_dict(dict(np.load(spec["weights"])))
    images, labels = batch(spec)
    if spec["task"] == "inference":
        model.eval()
        x = minitl.tensor(images)

        @minitl.no_grad()
        def infer() -> Any:
            return model(x).numpy()[:, :8].tolist()

        return infer
    if spec["task"] == "frozen backbone":
        model.freeze(*(n for n, _ in model.named_parameters() if not n.startswith("fc.")))
    optimizer = optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def train() -> Any:
        loss = ops.softmax_cross_entropy(model(minitl.tensor(images)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return train


def torch_step(spec: dict[str, Any]) -> Step:
    """Return PyTorch's step."""
    import torch
    from torch.nn import functional as F

    from benchmarks import rivals

    network: Any = rivals.make(spec["model"])
    state = {name: torch.from_numpy(value) for name, value in np.load(spec["weights"]).items()}
    counts = {n: v for n, v in network.state_dict().items() if n.endswith("num_batches_tracked")}
    network.load_state_dict(state | counts)
    images, labels = batch(spec)
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    layout = torch.channels_last if spec["format"] == "nhwc" else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    if spec["task"] == "inference":
        network = rivals.fold(network) if spec["fold"] else network.eval()
    network = network.to(memory_format=layout)
    run = torch.compile(network) if spec["compile"] else network
    if spec["task"] == "inference":

        @torch.inference_mode()
        def infer() -> Any:
            return run(x)[:, :8].tolist()

        return infer
    if spec["task"] == "frozen backbone":
        network.requires_grad_(False)
        network.eval()  # fixed statistics, as our frozen layers have
        network.fc.requires_grad_(True)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM)

    def train() -> Any:
        loss = F.cross_entropy(run(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return train


class Profile:
    """Adds up the time of each kernel, by putting a clock around each function of the backend."""

    def __init__(self) -> None:
        from minitl.kernels import cpu

        self.times: dict[str, list[float]] = {}
        for name in cpu.__all__:
            setattr(cpu, name, self._clocked(name, getattr(cpu, name)))

    def _clocked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            self.times.setdefault(name, []).append(time.perf_counter() - start)
            return result

        return clocked

    def take(self) -> dict[str, list[float]]:
        """Return the times since the last call."""
        times, self.times = self.times, {}
        return times


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    spec = json.loads(sys.argv[1])

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    step = minitl_step(spec) if spec["engine"] == "minitl" else torch_step(spec)
    profile = Profile() if spec.get("profile") else None
    answer(ready=True, peak_mb=peak_mb())
    for _ in sys.stdin:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        value = step()
        seconds = time.perf_counter() - start
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        kernels = profile.take() if profile else {}
        answer(seconds=seconds, value=value, faults=faults, peak_mb=peak_mb(), kernels=kernels)


def peak_mb() -> float:
    """Return the most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
