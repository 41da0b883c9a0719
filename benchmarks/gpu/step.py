"""Whole steps on a GPU: ours in bfloat16 beside PyTorch, eager and compiled, with the same weights.

    python -m benchmarks.gpu.step FILE.jsonl SECONDS [target]

    training          all layers, statistics of the batch
    fine-tuning       all convolutions and the head; batch normalisation fixed, as users do on small sets
    frozen backbone   the head alone
    inference         logits

PyTorch runs in channels_last under autocast to bfloat16, with SGD's fused step. Pictures and labels lie on
the GPU for all. The contenders take their steps by turns, after what they compute has been compared: ours may
be no further from PyTorch in float32 than a small multiple of what PyTorch in bfloat16 is.

`target` is the comparison that the project is after, and nothing else: fine-tuning of ResNet-50 on batches
of 256. It has a process of its own, as compiling may hang.
"""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import rivals
from benchmarks.gpu import arrays
from benchmarks.shapes import NETWORKS as LAYERS
from minitl import models, nn, optim
from minitl.device import cupy, get_device
from minitl.train.batches import Inputs
from minitl.train.inference import Inference
from minitl.train.step import TrainingStep

Row = dict[str, Any]
State = dict[str, np.ndarray]

TASKS = ("fine-tuning", "training", "inference", "frozen backbone")
LR, MOMENTUM = 0.01, 0.9
# How far from PyTorch's float32 ours may be, in multiples of PyTorch's bfloat16: all changes of the weights
# taken together, and those of any one array; losses and logits.
TOGETHER, SINGLE, VALUES = 2.0, 4.0, 3.0
SAME = 2e-3  # that far in any case, as a share: bfloat16 has 8 bits
IMAGES = 2048  # in a measurement of ResNet-50, about
WARM_UP = 6  # ours records the fourth as a graph, and the last ones replay it
NORMS = ("*bn[0-9].*", "*downsample.1.*")
# Bytes that a picture moves through memory, each kernel's arrays once, modelled for ResNet-50 at 224 pixels
# with what is fused in our networks. Where there is none, the multiplications alone make the floor.
TRAFFIC = {"fine-tuning": 182e6, "training": 293e6, "inference": 52.5e6}


def make_weights(name: str) -> dict[str, np.ndarray]:
    """Return weights that keep the activations of an untrained network tame."""
    state = dict(models.create(name, seed=0).state_dict())
    last = "bn3.weight" if any(".bn3." in key for key in state) else "bn2.weight"
    return {
        key: np.full_like(value, 0.2) if key.endswith(last) else np.ascontiguousarray(value)
        for key, value in state.items()
    }


def gflop(name: str, task: str) -> float:
    """Return the GFLOP of the convolutions for a picture: forward, and of what trains dx and dw."""
    total = 0.0
    for layer, uses in LAYERS[name].items():
        if layer.op == "conv2d":
            side = (layer.size + 2 * layer.padding - layer.kernel) // layer.stride + 1
            each = 2 * side**2 * layer.filters * layer.channels * layer.kernel**2
            trained = task in ("training", "fine-tuning")
            total += uses * each * (1 + trained * (1 if layer.first else 2))
    return total / 1e9


class Ours:
    """Our contender, by the classes that `minitl finetune` and `evaluate` use."""

    def __init__(self, name: str, task: str, weights: State, x: torch.Tensor, y: torch.Tensor):
        device = get_device("cuda")
        model = models.create(name, seed=None)
        model.load_state_dict(weights)
        if task == "fine-tuning":
            model.freeze(*NORMS)
        if task == "frozen backbone":
            model.freeze(*model.backbone_parameters())
        self._model: nn.Module = model.to(device)
        device.kernels.set_precision("float32")  # activations in bfloat16 decide
        self._inputs = Inputs(arrays.to_minitl(x), arrays.to_minitl(y), y.cpu().numpy())
        self._step: TrainingStep | None = None
        if task == "inference":
            self._model.eval()
            self._inference = Inference(self._model, device)
        else:
            self._model.train()
            trained = [p for p in self._model.parameters() if p.requires_grad]
            optimizer = optim.SGD(trained, lr=LR, momentum=MOMENTUM)
            self._step = TrainingStep(model, model, optimizer, device)

    def step(self) -> None:
        """Take a step; nobody waits for it."""
        if self._step is None:
            self._logits = self._inference(self._inputs.x)
        else:
            self._step(self._inputs)

    def values(self) -> np.ndarray:
        """Wait; return the losses of the steps since the last call, or the last logits."""
        if self._step is None:
            return np.asarray(self._logits.numpy(), np.float64)
        return np.array([result.loss for result in self._step.results()])

    def state(self) -> State:
        """Return all parameters and statistics as they are now; nothing in inference, which changes none."""
        return {} if self._step is None else dict(self._model.state_dict())


class Torch:
    """PyTorch's contender."""

    def __init__(
        self,
        name: str,
        task: str,
        weights: State,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        compiled: bool = False,
        exact: bool = False,
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
        self._network = network
        self._run = torch.compile(network) if compiled else network
        self._exact = exact
        self._x, self._y = (x.float() if exact else x).permute(0, 3, 1, 2), y
        self._losses: list[torch.Tensor] = []
        trained = [p for p in network.parameters() if p.requires_grad]
        if self._is_training:
            fused = x.is_cuda
            self._optimizer = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM, fused=fused)
        self._kind = x.device.type

    def step(self) -> None:
        """Take a step; nobody waits for it."""
        with torch.autocast(self._kind, torch.bfloat16, enabled=not self._exact):
            if not self._is_training:
                with torch.inference_mode():
                    self._logits = self._run(self._x)
                return
            loss = F.cross_entropy(self._run(self._x), self._y)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._losses.append(loss.detach())

    def values(self) -> np.ndarray:
        """Wait; return the losses of the steps since the last call, or the last logits."""
        if not self._is_training:
            return self._logits.double().cpu().numpy()
        losses, self._losses = self._losses, []
        return torch.stack(losses).double().cpu().numpy()

    def state(self) -> State:
        """Return all parameters and statistics as they are now; nothing in inference, which changes none."""
        state = self._network.state_dict() if self._is_training else {}
        return {name: value.cpu().numpy() for name, value in state.items()}


def verify(ours: Any, theirs: Any, exact: Any, weights: State) -> Row:
    """Compare what two contenders have computed in bfloat16 with the exact one's; all after WARM_UP steps.

    Returns "difference" and "allowed" of the worst of losses (logits), all changes of the weights together,
    and those of each array: shares of the exact ones. "worst" names what that was.
    """
    right = exact.values()
    found: list[tuple[str, float, float]] = []
    mine, other = (_share(contender.values(), right) for contender in (ours, theirs))
    found.append(("losses or logits", mine, max(VALUES * other, SAME)))
    states = [contender.state() for contender in (ours, theirs, exact)]
    changes = [{n: state[n] - before for n, before in weights.items() if state} for state in states]
    moved = [name for name, change in changes[2].items() if change.any()]
    if moved:
        flat = [np.concatenate([c[name].ravel() for name in moved]) for c in changes]
        mine, other = _share(flat[0], flat[2]), _share(flat[1], flat[2])
        found.append(("all weights", mine, max(TOGETHER * other, SAME)))
        errors = [[_share(c[name], changes[2][name]) for name in moved] for c in changes[:2]]
        usual = statistics.median(errors[1])
        for name, mine, other in zip(moved, *errors, strict=True):
            found.append((name, mine, max(SINGLE * max(other, usual), SAME)))
    for name, change in changes[0].items():
        if name not in moved and change.any():
            found.append((f"{name}, which should stay", float("inf"), 0.0))
    worst, difference, allowed = max(found, key=lambda f: f[1] / f[2] if f[2] else float("inf"))
    return {
        "worst": worst,
        "difference": difference,
        "allowed": allowed,
        "verified": difference <= allowed,
    }


def _share(found: np.ndarray, right: np.ndarray) -> float:
    """Return the norm of the difference as a share of that of the right values; infinity for NaN."""
    difference = np.asarray(found, np.float64) - right
    share = float(np.linalg.norm(difference) / max(np.linalg.norm(right), 1e-30))
    return share if np.isfinite(share) else float("inf")


def compare(
    name: str, task: str, batch: int, *, size: int = 224, compiled: bool, rounds: int = 5
) -> Row:
    """Run one task of one network with all contenders; return the figures."""
    row: Row = {"model": name, "task": task, "batch": batch, "size": size}
    row["gflop"] = gflop(name, task)
    row["bytes"] = TRAFFIC.get(task, 0.0) if name == "resnet50" else 0.0
    weights = make_weights(name)
    x = arrays.random(batch, size, size, 3, precision="bf16")
    y = (torch.arange(batch, device=x.device) * 7) % 1000
    given = name, task, weights, x, y
    exact = Exact(*given)
    makers: dict[str, Callable[[], Any]] = {
        "minitl": lambda: Ours(*given),
        "torch eager": lambda: Torch(*given),
    }
    if compiled:
        makers["torch.compile"] = lambda: Torch(*given, compiled=True)
    contenders, row["memory_gb"] = {}, {}
    for key, make in makers.items():
        before = _memory()
        contenders[key] = make()
        for _ in range(WARM_UP):
            contenders[key].step()
        _synchronize()
        row["memory_gb"][key] = _memory() - before
    row |= verify(contenders["minitl"], contenders["torch eager"], exact, weights)
    del exact
    if not row["verified"]:
        return row
    count = max(2, round(IMAGES / batch / (1 if name == "resnet50" else 0.5)))
    times: dict[str, list[float]] = {key: [] for key in contenders}
    for _ in range(rounds):
        for key, contender in contenders.items():
            _synchronize()
            start = time.perf_counter()
            for _ in range(count):
                contender.step()
            _synchronize()
            times[key].append((time.perf_counter() - start) / count)
            contender.values()  # what is kept of each step
    seconds = {key: float(np.median(v)) for key, v in times.items()}
    row["ms"] = {key: 1e3 * value for key, value in seconds.items()}
    row["images_per_second"] = {key: batch / value for key, value in seconds.items()}
    rivals_ = {key: value for key, value in seconds.items() if key != "minitl"}
    row["better"] = min(rivals_, key=lambda key: rivals_[key])
    row["ratio"] = rivals_[row["better"]] / seconds["minitl"]
    return row


class Exact:
    """What PyTorch computes in float32. Its network is gone before the others need the memory."""

    def __init__(self, name: str, task: str, weights: State, x: torch.Tensor, y: torch.Tensor):
        searches, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            contender = Torch(name, task, weights, x, y, exact=True)
            for _ in range(WARM_UP):
                contender.step()
            self._values, self._state = contender.values(), contender.state()
        finally:
            torch.backends.cudnn.benchmark = searches
        del contender
        gc.collect()
        torch.cuda.empty_cache()

    def values(self) -> np.ndarray:
        """Return the losses of its steps, or the logits."""
        return self._values

    def state(self) -> State:
        """Return all parameters after its steps."""
        return self._state


def _memory() -> float:
    """Return the GB in use on the GPU, by everybody; 0 where PyTorch has none."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return float(total - free) / 2**30


def _synchronize() -> None:
    cupy().cuda.Device().synchronize()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def plan(target: bool) -> Iterator[tuple[str, str, int, bool]]:
    """Yield (network, task, batch, whether compiled as well): what matters most comes first.

    Compiling may take a minute or hang, so nothing that matters more stands behind it.
    """
    if target:
        yield "resnet50", "fine-tuning", 256, False
        yield "resnet50", "fine-tuning", 256, True
        return
    for task in TASKS[1:]:
        yield "resnet50", task, 256, False
    for task in ("training", "inference"):
        yield "resnet50", task, 256, True
    for name, batch in (("resnet50", 32), ("resnet18", 256), ("resnet18", 32)):
        for task in TASKS:
            yield name, task, batch, False


def main(arguments: Sequence[str]) -> None:
    """Measure until everything is done or the time is up."""
    path, seconds = Path(arguments[0]), float(arguments[1])
    deadline = time.monotonic() + seconds
    torch.backends.cudnn.benchmark = True
    with path.open("w") as file:

        def write(row: Row) -> None:
            print(json.dumps(row), file=file, flush=True)

        for name, task, batch, compiled in plan("target" in arguments):
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
    main(sys.argv[1:])
