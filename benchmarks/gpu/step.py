"""Whole steps on a GPU: ours in bfloat16 beside PyTorch, eager and compiled, with the same weights.

    python -m benchmarks.gpu.step FILE.jsonl SECONDS

    training          all layers, statistics of the batch
    fine-tuning       all convolutions and the head; batch normalisation fixed, as users do on small sets
    frozen backbone   the head alone
    inference         logits

PyTorch runs in channels_last under autocast to bfloat16, with SGD's fused step. Pictures and labels lie on
the GPU for all. The contenders take their steps by turns, after their losses (logits) have been compared.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import rivals
from benchmarks.gpu import arrays
from benchmarks.step import differ
from minitl import models, nn, no_grad, optim
from minitl.device import cupy, get_device
from minitl.tensor import Tensor
from minitl.train.batches import Inputs
from minitl.train.step import TrainingStep

Row = dict[str, Any]
Step = Callable[[], Any]  # a loss, or some logits; None while nobody asks

TASKS = ("training", "fine-tuning", "frozen backbone", "inference")
NETWORKS = ("resnet50", "resnet18")
BATCHES = (256, 32)
LR, MOMENTUM = 0.01, 0.9
# Of two networks in bfloat16: of a loss as a share, of logits as a share of the largest.
SAME_LOSS, SAME_LOGITS = 2e-2, 5e-2
WARM_UP = 6  # the third of ours is recorded as a graph
NORMS = ("*bn[0-9].*", "*downsample.1.*")


def make_weights(name: str) -> dict[str, np.ndarray]:
    """Return weights that keep the activations of an untrained network tame."""
    state = dict(models.create(name, seed=0).state_dict())
    last = "bn3.weight" if any(".bn3." in key for key in state) else "bn2.weight"
    return {
        key: np.full_like(value, 0.2) if key.endswith(last) else np.ascontiguousarray(value)
        for key, value in state.items()
    }


class Ours:
    """Our contender."""

    def __init__(self, name: str, task: str, weights: Any, x: torch.Tensor, y: torch.Tensor):
        self._device = get_device("cuda")
        model = models.create(name, seed=None)
        model.load_state_dict(weights)
        if task == "fine-tuning":
            model.freeze(*NORMS)
        if task == "frozen backbone":
            model.freeze(*model.backbone_parameters())
        self._model: nn.Module = model.to(self._device)
        self._device.kernels.set_precision("float32")  # activations in bfloat16 decide
        labels = y.cpu().numpy()
        self._inputs = Inputs(arrays.to_minitl(x), arrays.to_minitl(y), labels)
        if task == "inference":
            self._model.eval()
        else:
            self._model.train()
            trained = [p for p in self._model.parameters() if p.requires_grad]
            optimizer = optim.SGD(trained, lr=LR, momentum=MOMENTUM)
            self._step = TrainingStep(model, model, optimizer, self._device)
        self._is_training = task != "inference"
        self._graph: Any = None

    def step(self) -> None:
        """Take a step; nobody waits for it."""
        if self._is_training:
            self._step(self._inputs)
        elif self._graph is None:
            self._infer()
        else:
            self._graph.launch(cupy().cuda.get_current_stream())

    @no_grad()
    def _infer(self) -> None:
        self._logits = self._model(Tensor(self._inputs.x))

    def record(self) -> None:
        """Record inference as a graph, as TrainingStep does by itself with training."""
        if self._is_training:
            return
        stream, self._pool = cupy().cuda.get_current_stream(), cupy().cuda.MemoryPool()
        with cupy().cuda.using_allocator(self._pool.malloc):
            self._infer()
            stream.begin_capture()
            self._infer()
            self._graph = stream.end_capture()

    def value(self) -> Any:
        """Wait, and return the loss of the last step, or some logits."""
        if self._is_training:
            return self._step.results()[-1].loss
        return self._logits.numpy()[:, :8].tolist()

    def memory(self) -> float:
        """Return the GB that our pools hold."""
        total = cupy().get_default_memory_pool().total_bytes()
        own = getattr(self, "_pool", None) or self._step._recorder._pool  # type: ignore[union-attr]
        return float(total + own.total_bytes()) / 2**30


class Torch:
    """PyTorch's contender."""

    def __init__(
        self, name: str, task: str, weights: Any, x: torch.Tensor, y: torch.Tensor, compiled: bool
    ):
        network: Any = rivals.make(name)
        state = {key: torch.from_numpy(value) for key, value in weights.items()}
        counts = {n: v for n, v in network.state_dict().items() if n.endswith("batches_tracked")}
        network.load_state_dict(state | counts)
        self._is_training = task != "inference"
        if task == "inference":
            network = rivals.fold(network)
        network = network.to(x.device, memory_format=torch.channels_last)
        if task == "frozen backbone":
            network.requires_grad_(False).eval()
            network.fc.requires_grad_(True)
        if task == "fine-tuning":
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval().requires_grad_(False)
        self._run = torch.compile(network) if compiled else network
        self._x, self._y = x.permute(0, 3, 1, 2), y
        trained = [p for p in network.parameters() if p.requires_grad]
        if self._is_training:
            fused = x.is_cuda
            self._optimizer = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM, fused=fused)
        self._kind = x.device.type

    def step(self) -> None:
        """Take a step; nobody waits for it."""
        with torch.autocast(self._kind, torch.bfloat16):
            if not self._is_training:
                with torch.inference_mode():
                    self._value = self._run(self._x)
                return
            loss = F.cross_entropy(self._run(self._x), self._y)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._value = loss.detach()

    def record(self) -> None:
        """There is nothing to do: PyTorch's users call it like this."""

    def value(self) -> Any:
        """Wait, and return the loss of the last step, or some logits."""
        value = self._value.float().cpu()
        return float(value) if self._is_training else value[:, :8].tolist()


def compare(
    name: str, task: str, batch: int, *, size: int = 224, compiled: bool, rounds: int = 5
) -> Row:
    """Run one task of one network with all contenders; return the figures."""
    row: Row = {"model": name, "task": task, "batch": batch, "size": size}
    weights = make_weights(name)
    x = arrays.random(batch, size, size, 3, precision="bf16")
    y = (torch.arange(batch, device=x.device) * 7) % 1000
    _synchronize()
    contenders: dict[str, Any] = {"minitl": Ours(name, task, weights, x, y)}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
    contenders["torch eager"] = Torch(name, task, weights, x, y, False)
    if compiled:
        contenders["torch.compile"] = Torch(name, task, weights, x, y, True)
    values: dict[str, list[Any]] = {key: [] for key in contenders}
    memory = {}
    for key, contender in contenders.items():
        for number in range(WARM_UP):
            contender.step()
            if number in (0, 2):
                values[key].append(contender.value())
        contender.record()
        contender.value()
        _synchronize()
        if key == "minitl":
            memory[key] = contender.memory()
        elif torch.cuda.is_available():
            memory[key] = (torch.cuda.max_memory_allocated() - base) / 2**30
            torch.cuda.reset_peak_memory_stats()
    allowed = SAME_LOGITS if task == "inference" else SAME_LOSS
    differences = {
        key: max(differ(a, b) for a, b in zip(v, values["torch eager"], strict=True))
        for key, v in values.items()
    }
    row |= {"difference": differences["minitl"], "verified": differences["minitl"] <= allowed}
    row["memory_gb"] = memory
    if not row["verified"]:
        return row
    count = max(2, round(2048 / batch / (1 if name == "resnet50" else 0.5)))
    times: dict[str, list[float]] = {key: [] for key in contenders}
    for _ in range(rounds):
        for key, contender in contenders.items():
            _synchronize()
            start = time.perf_counter()
            for _ in range(count):
                contender.step()
            _synchronize()
            times[key].append((time.perf_counter() - start) / count)
            if key == "minitl" and task != "inference":
                contender.value()  # reads what it keeps of each step
    seconds = {key: float(np.median(v)) for key, v in times.items()}
    row["ms"] = {key: 1e3 * value for key, value in seconds.items()}
    row["images_per_second"] = {key: batch / value for key, value in seconds.items()}
    row["ratio"] = min(v for k, v in seconds.items() if k != "minitl") / seconds["minitl"]
    return row


def _synchronize() -> None:
    cupy().cuda.Device().synchronize()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def plan() -> Iterator[tuple[str, str, int, bool]]:
    """Yield (network, task, batch, whether compiled as well): what matters most comes first.

    Compiling may take a minute or hang, so nothing that matters more stands behind it.
    """
    for name in NETWORKS:
        for batch in BATCHES:
            for task in TASKS:
                yield name, task, batch, False
        for task in ("training", "inference") if name == "resnet50" else ():
            yield name, task, 256, True


def main() -> None:
    """Measure until everything is done or the time is up."""
    path, seconds = Path(sys.argv[1]), float(sys.argv[2])
    deadline = time.monotonic() + seconds
    torch.backends.cudnn.benchmark = True
    with path.open("w") as file:

        def write(row: Row) -> None:
            print(json.dumps(row), file=file, flush=True)

        for name, task, batch, compiled in plan():
            if time.monotonic() > deadline:
                write({"unfinished": f"no time left for {name}, {task}, batch {batch} and further"})
                break
            try:
                with get_device("cuda").computing():
                    write(compare(name, task, batch, compiled=compiled))
            except Exception as problem:  # the others are still worth knowing
                text = f"{type(problem).__name__}: {problem}"[:400]
                row = {"model": name, "task": task, "batch": batch, "verified": False}
                write(row | {"problem": text})
            gc.collect()  # a step and its recorder hold each other
            torch.cuda.empty_cache()
            cupy().get_default_memory_pool().free_all_blocks()


if __name__ == "__main__":
    main()
