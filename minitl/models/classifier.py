"""What every network here is: a classifier that knows its architecture and its input."""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

from minitl import init, nn
from minitl.models.options import whole
from minitl.tasks import Task, from_dicts, output_names
from minitl.tensor import Tensor

MOST_HIDDEN = 8  # dense layers before the last one
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def preprocessing(resize: int, crop: int, interpolation: str = "bilinear") -> dict[str, Any]:
    """Return the usual preparation of pictures: resizing, and ImageNet's mean and deviation."""
    return {
        "resize": resize,
        "crop": crop,
        "interpolation": interpolation,
        "channel_order": "RGB",
        "scale": 1 / 255,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }


class Stage(NamedTuple):
    """A step of a trunk, behind which a network can be cut in two.

    name: of the cut behind it, as the modules are named: "layer3.1". forward: computes it.
    modules: names of all modules that it computes with.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    modules: tuple[str, ...] = ()


class _DroppedLinear(nn.Linear):
    """A dense layer with dropout before it; its parameters' names are those of the layer alone."""

    def __init__(self, layer: nn.Linear, p: float, seed: int) -> None:
        self.weight, self.bias = layer.weight, layer.bias
        self.dropout = nn.Dropout(p, seed=seed)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        return super().forward(self.dropout(x))


class Classifier(nn.Module):
    """A trunk that turns pictures into one feature vector each, and a head for the classes.

    The head is a dense layer, or several with ReLU between them; their widths but for the last are then
    `arch_options["head"]`. Its outputs are classes, or what `arch_options["tasks"]` says (minitl/tasks.py).

    arch, arch_options: the registered name and options that `models.create` makes the same network of.
    class_names: the head's classes in order, if known.
    preprocessing: how a picture becomes an input, as stored in weights files. A new network starts with
        what is usual for its architecture.
    source, source_sha256, license: where its weights came from, as in weights files; empty for new ones.
    head_name: where the head is, as the original implementation names it: "fc", "classifier.6".
    """

    head_name = "fc"
    second_head_weight = 0.0  # of a second head's loss in training, where there is one

    def __init__(
        self, arch: str, arch_options: dict[str, Any], preprocessing: dict[str, Any]
    ) -> None:
        self.arch = arch
        self.arch_options = arch_options
        self.class_names: list[str] | None = None
        self.preprocessing = preprocessing
        self.source = self.source_sha256 = self.license = ""

    @property
    def head(self) -> Any:
        """What follows the trunk: a dense layer, or a Sequential of several and ReLU."""
        return self._at(self.head_name.split("."))

    @property
    def last_name(self) -> str:
        """Where the last layer is: the head, or the last one in it."""
        hidden = self.arch_options.get("head", ())
        return f"{self.head_name}.{2 * len(hidden)}" if hidden else self.head_name

    def _at(self, path: Sequence[str]) -> Any:
        return reduce(getattr, path, self)

    @property
    def heads(self) -> tuple[str, ...]:
        """Where all layers are whose outputs are classes: the head, and what helps to train it."""
        return (self.head_name,)

    @property
    def num_classes(self) -> int:
        """Number of classes the head distinguishes."""
        last: nn.Linear = self._at(self.last_name.split("."))
        return last.weight.shape[0]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the outputs stand for, where they are not simply classes."""
        return from_dicts(self.arch_options["tasks"]) if "tasks" in self.arch_options else ()

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        """Say what the outputs stand for. Raises ValueError where there are more or fewer of them."""
        names = output_names(tasks)
        if len(names) != self.num_classes:
            raise ValueError(f"tasks with {len(names)} outputs, a head with {self.num_classes}")
        described = [task.to_dict() for task in tasks]
        self.arch_options = self.arch_options | {"tasks": described}
        self.class_names = names

    def stages(self) -> list[Stage]:
        """Return the steps of the trunk in order; each is given what the one before it returned."""
        raise NotImplementedError

    def stages_of(self, *names: str) -> list[Stage]:
        """Return a stage for each of these modules; for a Sequential one for each module in it."""
        stages = []
        for name in names:
            module = self._at(name.split("."))
            if isinstance(module, nn.Sequential):
                stages += self.stages_of(*(f"{name}.{number}" for number in range(len(module))))
            else:
                stages.append(Stage(name, module, (name,)))
        return stages

    def features(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, F): what the trunk sees in each picture."""
        return run_stages(self.stages(), x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, classes): logits."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def from_stage(self, cut: int, x: Tensor) -> Tensor:
        """What the first `cut` stages return -> (N, classes): logits."""
        logits: Tensor = self.head(run_stages(self.stages()[cut:], x))
        return logits

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, H, W, 3) -> logits, and those of a second head that helps to train, if there is one."""
        return self.forward(x), None

    def backbone_parameters(self) -> dict[str, nn.Parameter]:
        """Return everything that can be learned but the head, by name."""
        prefix = f"{self.head_name}."
        return {n: p for n, p in self.named_parameters() if not n.startswith(prefix)}

    def drop_before_head(self, p: float, *, seed: int | None = None) -> None:
        """In training, zero a share p of what the last dense layer is given; see `nn.Dropout`.

        seed: None for the number of dropouts that the network has already; theirs are counted from 0.
        """
        if seed is None:
            seed = sum(isinstance(module, nn.Dropout) for _, module in self.named_modules())
        *path, last = self.last_name.split(".")
        setattr(self._at(path), last, _DroppedLinear(self._at([*path, last]), p, seed))

    def replace_head(
        self, num_classes: int, *, seed: int | None = 0, hidden: Sequence[int] = ()
    ) -> None:
        """Put a freshly initialised head for `num_classes` classes in place of the old one.

        hidden: widths of dense layers with ReLU before the last one. seed: None leaves zeros.

        Raises ValueError for widths that are none.
        """
        if not isinstance(hidden, list | tuple) or len(hidden) > MOST_HIDDEN:
            raise ValueError(f"head must be a list of at most {MOST_HIDDEN} widths; got {hidden!r}")
        rng = init.generator(seed)
        old = self.head
        size = (old if isinstance(old, nn.Linear) else next(iter(old))).weight.shape[1]
        new: nn.Module
        layers: list[nn.Module] = []
        for width in hidden:
            whole(width, "head", 1, 65536)
            layers += [nn.Linear(size, width, rng=rng, weight_init=init.he_normal), nn.ReLU()]
            size = width
        last = nn.Linear(size, num_classes, rng=rng)
        new = nn.Sequential(*layers, last) if layers else last
        new.train(self.training)
        *path, name = self.head_name.split(".")
        setattr(self._at(path), name, new)
        of_old = ("head", "tasks")
        self.arch_options = {k: v for k, v in self.arch_options.items() if k not in of_old}
        if hidden:
            self.arch_options["head"] = list(hidden)
        self.class_names = None

    def flatten_before_head(self) -> None:
        """Leave out what lies between the flattened map of the last convolution and the head.

        Raises ValueError for a network that is not built so.
        """
        raise ValueError(
            f"{self.arch} has no dense layers before its head; only VGG networks have: use mlp:..."
        )


def run_stages(stages: Iterable[Stage], x: Tensor) -> Tensor:
    """Compute stages, one after another."""
    for stage in stages:
        x = stage.forward(x)
    return x
