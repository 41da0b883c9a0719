"""Modules: parameters with names, and the layers that networks are described with.

A module's attributes are its contents, in the order they were set: a `Parameter` is learned, a plain
array is a buffer (state that is saved but not learned), a `Module` is a child. Nothing is registered.
Names are those of torchvision (`layer1.0.conv1.weight`), so its weights load as they are. Where such
a name is taken by a method, the attribute ends in an underscore, which is no part of the name.

In memory filters are (K, R, S, C); `state_dict` and files use PyTorch's (K, C, R, S).
"""

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from minitl import init, ops
from minitl.backend import Array, assign, is_on_gpu, like, to_host
from minitl.changing_numbers import in_memory
from minitl.device import Device, get_device
from minitl.init import Rng
from minitl.shapes import Padding, Pair, pair, same_padding
from minitl.tensor import FLOATS, Tensor

# "same" is TensorFlow's padding, which depends on the picture's size (see `shapes.same_padding`).
AnyPadding = Padding | Literal["same"]
Init = Callable[[tuple[int, ...], Rng], np.ndarray]


class Parameter(Tensor):
    """A tensor that a module owns and training changes."""

    __slots__ = ()

    def __init__(self, data: Array, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)


class IncompatibleKeys(NamedTuple):
    """Names that a model has and a state has not, and the other way round."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def is_counter(name: str) -> bool:
    """Whether a name is that of the counter in PyTorch's normalisations, which has no effect."""
    return name.split(".")[-1] == "num_batches_tracked"


class Module:
    """A part of a network: parameters, buffers and children, and a `forward`."""

    training: bool = True

    def forward(self, x: Tensor) -> Tensor:
        """Compute the module's result."""
        raise NotImplementedError

    def __call__(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Run `forward`."""
        return self.forward(x, *args, **options)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """Yield (name, module) for this module (name "") and everything inside it.

        Raises ValueError where two attributes make one name, as `a` and `a_` do.
        """
        yield prefix, self
        attributes: dict[str, str] = {}  # by name
        for attribute, value in vars(self).items():
            if isinstance(value, Module):
                name = attribute.rstrip("_")
                other = attributes.setdefault(name, attribute)
                if other != attribute:
                    raise ValueError(
                        f"the attributes {other} and {attribute} of {type(self).__name__} would both be "
                        f"named {name!r}, without the underscore; rename one"
                    )
                yield from value.named_modules(f"{prefix}.{name}" if prefix else name)

    def _named_values(self, kind: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if kind(value) and not name.startswith("_"):
                    yield (f"{prefix}.{name}" if prefix else name), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (name, parameter) of everything that can be learned, frozen or not."""
        return self._named_values(lambda value: isinstance(value, Parameter))

    def parameters(self) -> list[Parameter]:
        """Return all parameters, each once, frozen ones too (optimizers leave those out)."""
        return list({id(parameter): parameter for _, parameter in self.named_parameters()}.values())

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Yield (name, array) of the state that is saved but not learned."""
        return self._named_values(_is_array)

    def train(self, mode: bool = True) -> Self:
        """Switch to training behaviour (batch statistics, dropout); return the module."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Switch to evaluation behaviour; return the module."""
        return self.train(False)

    def freeze(self, *patterns: str) -> list[str]:
        """Stop training what the patterns name; return the names of the parameters now frozen.

        A pattern is the name of a parameter or module ("layer1", "layer2.0.bn1"), or a shell pattern
        over parameter names ("layer?.*.conv1.weight"). Without patterns everything is frozen. The
        statistics of a batch normalisation are fixed too once all its parameters are frozen, in
        training mode as well.

        Raises ValueError, changing nothing, for a pattern that matches no parameter.
        """
        return self._set_frozen(True, patterns)

    def unfreeze(self, *patterns: str) -> list[str]:
        """Train what the patterns name again; the reverse of `freeze`."""
        return self._set_frozen(False, patterns)

    def parameters_named(self, *patterns: str) -> dict[str, Parameter]:
        """Return the parameters that patterns as for `freeze` name; ValueError for one that names none."""
        named = dict(self.named_parameters())
        chosen: dict[str, Parameter] = {}
        for pattern in patterns:
            matches = {n: p for n, p in named.items() if _matches(n, pattern)}
            if not matches:
                tops = ", ".join(dict.fromkeys(name.split(".")[0] for name in named))
                raise ValueError(
                    f"{pattern!r} matches no parameter of this model; its parts are: {tops}"
                )
            chosen |= matches
        return chosen

    def _set_frozen(self, frozen: bool, patterns: tuple[str, ...]) -> list[str]:
        chosen = self.parameters_named(*(patterns or ("*",)))
        for parameter in chosen.values():
            parameter.requires_grad = not frozen
            if frozen:
                parameter.grad = None
        for _, module in self.named_modules():
            if isinstance(module, BatchNorm2d):
                module.frozen = not (module.weight.requires_grad or module.bias.requires_grad)
        return list(chosen)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return all parameters and buffers by name, filters as (K, C, R, S).

        The arrays are views of the model's memory where it lives on the CPU (copy what must outlive a
        training step), and copies of what is on a GPU.
        """
        return {name: _to_file_layout(to_host(array)) for name, array in self._arrays()}

    def _arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield (name, array) of what `state_dict` holds, as it lies in memory."""
        yield from ((name, parameter.data) for name, parameter in self.named_parameters())
        yield from self.named_buffers()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy values by name into the model; return the names that did not match.

        state: NumPy arrays, or tensors of PyTorch on the CPU, filters as (K, C, R, S). PyTorch's counters
        `num_batches_tracked` are left out. strict: names must be exactly the model's own; otherwise what
        is missing stays as it is and what is unexpected is left out: look at what is returned.

        Raises, changing nothing, ValueError that lists every misshapen name and, if strict, every missing
        or unexpected one; TypeError for a value that cannot be read as an array.
        """
        state = {name: value for name, value in state.items() if not is_counter(name)}
        own = {name: _to_file_layout(array) for name, array in self._arrays()}
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        given = {name: _read(state[name], name) for name in own if name in state}
        misshapen = [
            f"{name} {value.shape} instead of {tuple(own[name].shape)}"
            for name, value in given.items()
            if value.shape != tuple(own[name].shape)
        ]
        kinds = {"wrong shape": misshapen}
        if strict:
            kinds = {"missing": missing, "unexpected": unexpected, **kinds}
        problems = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
        if problems:
            raise ValueError("the weights do not fit this model; " + "; ".join(problems))
        for name, parameter in self.named_parameters():
            parameter._version += name in given
        for name, array in self._arrays():
            if name in given:
                values = _from_file_layout(np.asarray(given[name], array.dtype))
                assign(array, like(array, values))
        return IncompatibleKeys(missing, unexpected)

    def astype(self, dtype: Any) -> Self:
        """Convert all parameters and buffers to float32 or float64, in place; return the module.

        Raises TypeError for another dtype.
        """
        dtype = np.dtype(dtype)
        if dtype not in FLOATS:
            raise TypeError(f"a model's numbers are float32 or float64, not {dtype}")
        return self._convert(lambda array: like(array, to_host(array).astype(dtype)))

    def to(self, device: str | Device) -> Self:
        """Move all parameters and buffers to a device such as "cuda:0", in place; return the module.

        An optimizer is made after that. Raises UserError for a device that cannot be used.
        """
        return self._convert(get_device(device).array)

    def _convert(self, convert: Callable[[Array], Array]) -> Self:
        for _, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor):  # a parameter, or a constant of the module's own
                    value.data, value.grad, value.grad_buffer = convert(value.data), None, None
                elif _is_array(value):
                    setattr(module, name, convert(value))
        return self


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or is_on_gpu(value)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(pattern + ".") or fnmatch.fnmatchcase(name, pattern)


def _read(value: Any, name: str) -> np.ndarray:
    """Return a value of a state dict as an array, without a copy where it is one or a tensor of PyTorch."""
    try:
        array = np.asarray(value)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # a tensor of a GPU, in bfloat16, or that trains
        raise TypeError(
            f"{name}: a {type(value).__name__} cannot be read as an array ({error}); give a NumPy array, or "
            "a tensor of PyTorch after .detach().cpu().float()"
        ) from error
    if array.dtype.kind not in "fiu":
        raise TypeError(
            f"{name}: a {type(value).__name__} of {array.dtype} holds no numbers; give a NumPy array of "
            "floats, or a tensor of PyTorch on the CPU"
        )
    return array


def _to_file_layout(array: Array) -> Array:
    """View filters (K, R, S, C) as (K, C, R, S); only filters have four axes."""
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def _from_file_layout(array: np.ndarray) -> np.ndarray:
    """View filters (K, C, R, S) as they lie in memory, (K, R, S, C)."""
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def _padding_for(
    x: Tensor, padding: AnyPadding, kernel: Pair, stride: Pair, dilation: Pair = 1
) -> Padding:
    """Return `padding` as the operations take it."""
    if padding != "same":
        return padding
    if x.ndim != 4:
        raise ValueError(f"padding 'same' needs pictures of shape (N, H, W, C); got {x.shape}")
    window = pair(kernel, "kernel_size"), pair(stride, "stride"), pair(dilation, "dilation")
    return same_padding(x.shape[1], x.shape[2], *window)


def _drawing(rng: Rng | None) -> Rng:
    """Return what draws the weights of a layer: a fresh generator where nobody gave one."""
    if isinstance(rng, str) and rng == "zeros":
        return rng
    return np.random.default_rng(rng)  # hands a generator back, and refuses what is none


class Sequential(Module):
    """Modules one after another, named "0", "1", ..."""

    def __init__(self, *modules: Module) -> None:
        for number, module in enumerate(modules):
            setattr(self, str(number), module)

    def __iter__(self) -> Iterator[Module]:
        return (m for m in vars(self).values() if isinstance(m, Module))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def forward(self, x: Tensor) -> Tensor:
        """Run the modules in order."""
        for module in self:
            x = module(x)
        return x


class Identity(Module):
    """Hands its input on."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        return x


class Conv2d(Module):
    """Convolution: weight (K, R, S, C/groups), bias (K,) or None. Arguments as in `ops.conv2d`;
    padding may also be "same", TensorFlow's.

    rng: draws the initial weight with `weight_init`; the bias begins as zeros. None: a fresh generator,
        other weights in each run. np.random.default_rng(SEED): the same in each. "zeros": no draw, for
        weights that are about to be loaded.

    Raises ValueError for channels that `groups` does not divide, or of which there are none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: AnyPadding = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        rng: Rng | None = None,
        weight_init: Init = init.he_normal,
    ) -> None:
        channels = in_channels, out_channels
        if min(*channels, groups) < 1 or any(c % groups for c in channels):
            raise ValueError(
                f"a convolution from {in_channels} to {out_channels} channels cannot have {groups} groups"
            )
        shape = (out_channels, *pair(kernel_size, "kernel_size"), in_channels // groups)
        self.weight = Parameter(weight_init(shape, _drawing(rng)))
        self.bias = Parameter(np.zeros(out_channels, np.float32)) if bias else None
        self.kernel_size = shape[1:3]
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def padding_for(self, x: Tensor) -> Padding:
        """Return the padding that pictures x get, as `ops.conv2d` takes it."""
        return _padding_for(x, self.padding, self.kernel_size, self.stride, self.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, P, Q, K)."""
        return ops.conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding_for(x),
            dilation=self.dilation,
            groups=self.groups,
        )


class Linear(Module):
    """Dense layer: weight (out, in), bias (out,) or None.

    rng: draws the initial weight with `weight_init` and the bias as PyTorch does; None, a generator or
        "zeros", as for `Conv2d`.

    Raises ValueError where one of the sizes is 0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        rng: Rng | None = None,
        weight_init: Init = init.lecun_uniform,
    ) -> None:
        if min(in_features, out_features) < 1:
            raise ValueError(
                f"a dense layer needs inputs and outputs; got {in_features} and {out_features}"
            )
        rng = _drawing(rng)
        self.weight = Parameter(weight_init((out_features, in_features), rng))
        self.bias = (
            Parameter(init.lecun_uniform((out_features,), rng, in_features)) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        return ops.linear(x, self.weight, self.bias)


class BatchNorm2d(Module):
    """Batch normalisation over all axes but the last, with what follows it fused in.

    In training the statistics are the batch's and the running ones move towards them; in evaluation,
    and always while `frozen`, the running ones are used and stay as they are.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))
        self.running_mean = np.zeros(channels, np.float32)
        self.running_var = np.ones(channels, np.float32)
        self.eps, self.momentum = eps, momentum
        self.frozen = False

    def forward(
        self,
        x: Tensor,
        *,
        relu: bool = False,
        residual: Tensor | None = None,
        maxpool: tuple[Pair, Pair, Padding] | None = None,
    ) -> Tensor:
        """Normalise x (..., C); then add `residual` if given; then apply ReLU if asked.

        A residual is always followed by a ReLU, as in residual networks. maxpool: (kernel size, stride,
        padding) of a max pooling at the end, after a ReLU as in the stem of a ResNet.

        Raises ValueError for a residual together with a max pooling: nothing fuses these.
        """
        if maxpool is not None and residual is not None:
            raise ValueError("BatchNorm2d fuses a residual or a max pooling, not both")
        arguments = (self.weight, self.bias, self.running_mean, self.running_var)
        options: dict[str, Any] = {
            "training": self.training and not self.frozen,
            "momentum": self.momentum,
            "eps": self.eps,
        }
        if maxpool is not None:
            return ops.batchnorm_relu_maxpool(x, *arguments, *maxpool, **options)
        if residual is not None:
            return ops.batchnorm_add_relu(x, residual, *arguments, **options)
        if relu:
            return ops.batchnorm_relu(x, *arguments, **options)
        return ops.batchnorm(x, *arguments, **options)

    def after(
        self,
        conv: Conv2d,
        x: Tensor,
        *,
        relu: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Return self(conv(x), relu=relu, residual=residual), in fewer passes over memory.

        With fixed statistics the normalisation is part of the convolution.
        """
        if conv.bias is not None:
            return self(conv(x), relu=relu, residual=residual)
        return ops.conv2d_batchnorm(
            x,
            conv.weight,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            residual=residual,
            relu=relu or residual is not None,
            training=self.training and not self.frozen,
            momentum=self.momentum,
            eps=self.eps,
            stride=conv.stride,
            padding=conv.padding_for(x),
            dilation=conv.dilation,
            groups=conv.groups,
        )


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return ops.relu(x)


class MaxPool2d(Module):
    """Largest value of each window. Arguments as in `ops.maxpool2d`; padding may also be "same"."""

    def __init__(
        self, kernel_size: Pair, stride: Pair | None = None, padding: AnyPadding = 0
    ) -> None:
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, P, Q, C)."""
        padding = _padding_for(x, self.padding, self.kernel_size, self.stride)
        return ops.maxpool2d(x, self.kernel_size, self.stride, padding)


class AvgPool2d(Module):
    """Mean of each window. Arguments as in `ops.avgpool2d`; padding may also be "same"."""

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: AnyPadding = 0,
        count_include_pad: bool = True,
    ) -> None:
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, P, Q, C)."""
        padding = _padding_for(x, self.padding, self.kernel_size, self.stride)
        return ops.avgpool2d(x, self.kernel_size, self.stride, padding, self.count_include_pad)


class GlobalAvgPool2d(Module):
    """Mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, C)."""
        return ops.global_avgpool2d(x)


class Flatten(Module):
    """One row for each picture, in the order C, H, W that dense weights of PyTorch expect."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, C * H * W)."""
        return ops.flatten(x)


class Dropout(Module):
    """Zero a share p of the values in training and scale the others by 1 / (1 - p).

    seed: of the masks, 0 to 2^64 - 1. None: a fresh one, other masks in each run and in each layer. Layers
        of one seed and one size drop the same places.

    The masks are a function of (seed, offset) alone; `offset` counts the values drawn so far.

    Raises ValueError for a share outside [0, 1).
    """

    def __init__(self, p: float = 0.5, *, seed: int | None = None) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability must be in [0, 1); got {p}")
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        self.p, self.seed, self.offset = p, seed, 0

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        if not self.training or self.p == 0:
            return x
        size = x.data.size
        offset = in_memory(lambda: self._take(size), np.int64)
        return ops.dropout(x, self.p, seed=self.seed, offset=offset)

    def _take(self, numbers: int) -> int:
        """Return where the next numbers begin, and count them as drawn."""
        self.offset += numbers
        return self.offset - numbers
