"""The autograd engine: tensors, operations, and the tape that connects them.

Define-by-run: each operation computes at once and, only where an input needs a gradient, leaves a
record of itself. A record (an `Op` instance) keeps the few values its backward needs, which its class
declares in `saves`, and points to the records that made its inputs, never to the inputs themselves.
So what is not declared is not kept: a frozen trunk leaves no records and holds no activations, and
backward stops at its border by itself.

    loss.backward()
        walks the records from the newest to the oldest. An operation is younger than all that its
        inputs came from, so when a record's turn comes every gradient that flows into it has arrived.
        Each record is freed as soon as it has passed its gradients on.

No recursion, no global tape: the records reachable from `loss` are the tape.
"""

import contextlib
import dataclasses
import heapq
import itertools
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar, NoReturn

import numpy as np

from minitl.backend import (
    BFLOAT16,
    Array,
    assign,
    copied,
    dtype_name,
    is_on_gpu,
    kernels_for,
    like,
    real,
    to_host,
    widen,
)
from minitl.device import Device, get_device

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class _Mode(threading.local):
    """What the current thread records and checks."""

    grad_enabled = True
    detect_anomaly = False
    uses: "list[Use] | None" = None


_mode = _Mode()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Compute without recording, as a `with` block or a decorator."""
    previous, _mode.grad_enabled = _mode.grad_enabled, False
    try:
        yield
    finally:
        _mode.grad_enabled = previous


@contextlib.contextmanager
def detect_anomaly() -> Iterator[None]:
    """Check every result and every gradient; the first NaN or infinity raises and names its operation.

    Costs a pass over each array, so it is meant for finding a fault, not for training.
    """
    previous, _mode.detect_anomaly = _mode.detect_anomaly, True
    try:
        yield
    finally:
        _mode.detect_anomaly = previous


@contextlib.contextmanager
def record_uses() -> "Iterator[list[Use]]":
    """List every use of an operation in the block, in order: what a network does, as data.

    Independent of gradients. The list keeps its tensors alive, so their identities stay distinct.
    """
    uses: list[Use] = []
    previous, _mode.uses = _mode.uses, uses
    try:
        yield uses
    finally:
        _mode.uses = previous


class Tensor:
    """An array with a gradient.

    data: float32 or float64 array, NumPy's or CuPy's; on a GPU also bfloat16, held as uint16 (see
        `minitl.backend.BFLOAT16`). Pictures are N, H, W, C.
    grad: an array like `data` once `backward` has reached this tensor, if it is a leaf (not the result
        of an operation) that requires a gradient; else None. Gradients of several calls add up. That
        of a parameter with an optimizer lies in the optimizer's memory: copy what must outlive
        `zero_grad()`, for the next `backward` writes over it.

    A parameter that an optimizer's step or `load_state_dict` changes between forward and backward makes
    backward raise, where it needs the former value. Writing into `data` by hand is not noticed.
    """

    __slots__ = ("__weakref__", "_op", "_version", "data", "grad", "grad_buffer", "requires_grad")

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        kind = getattr(data, "dtype", type(data).__name__)
        known = kind in FLOATS or (kind == BFLOAT16 and is_on_gpu(data))
        if not isinstance(kind, np.dtype) or not known:
            raise TypeError(
                f"a Tensor holds float32 or float64, not {kind}; convert with .astype(numpy.float32) "
                "(labels are given to the losses as plain integer arrays)"
            )
        # NumPy turns arrays without axes into scalars wherever it computes with them.
        self.data: Array = np.asarray(data) if isinstance(data, np.generic) else data
        self.grad: Array | None = None
        # Where an optimizer wants the gradient to be written; see optim.py.
        self.grad_buffer: Array | None = None
        self.requires_grad = requires_grad
        self._op: Op | None = None
        self._version = 0  # counts changes in place of what backward may have kept

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype:
        """Element type of the data."""
        return self.data.dtype  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.data.shape)

    def numpy(self) -> np.ndarray:
        """Return the data as a NumPy array of floats.

        That is the tensor's own memory where it lives on the CPU. From a GPU it is a copy, made once
        everything before it is computed; bfloat16 becomes float32.
        """
        host = to_host(self.data)
        return widen(host) if self.dtype == BFLOAT16 else host

    def item(self) -> float:
        """Return the only element as a Python float."""
        if self.data.size != 1:
            raise ValueError(
                f"item() needs exactly one element; this tensor has shape {self.shape}"
            )
        return float(self.numpy().reshape(()))

    def detach(self) -> "Tensor":
        """Return a tensor on the same memory that no gradient flows through."""
        return Tensor(self.data)

    # Operations lie above tensors and cannot be called from here: say which one is meant.
    def __add__(self, other: object) -> NoReturn:
        """Refuse: a sum is `ops.add(a, b)`."""
        raise TypeError(
            "a Tensor has no operators; for the sum of two tensors of one shape write ops.add(a, b)"
        )

    def __mul__(self, other: object) -> NoReturn:
        """Refuse: a product with a number is `ops.scale(x, factor)`."""
        raise TypeError(
            "a Tensor has no operators; for a number times a tensor write ops.scale(x, factor)"
        )

    __radd__, __rmul__ = __add__, __mul__

    # NumPy would take a tensor for one object without axes: its largest element would be number 0.
    def __array__(self, *_: object, **__: object) -> NoReturn:
        """Refuse: the numbers are `x.numpy()`."""
        raise TypeError("a Tensor is not an array of NumPy's; for its numbers write x.numpy()")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *_: object, **__: object) -> NoReturn:
        """Refuse, also what compares or computes with an array: the numbers are `x.numpy()`."""
        raise TypeError(
            f"numpy.{ufunc.__name__} does not work on a Tensor; for its numbers write x.numpy(), for what "
            "gradients flow through see minitl.ops"
        )

    def __repr__(self) -> str:
        origin = f", op={type(self._op).__name__}" if self._op else ""
        needs = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor(shape={self.shape}, dtype={dtype_name(self.dtype)}{needs}{origin})"

    def backward(self, grad: "Tensor | Array | None" = None) -> None:
        """Add the gradient of this tensor with respect to every leaf to the leaf's `grad`.

        grad: seed gradient of this tensor's shape and dtype, a tensor or an array on its device; may be
            left out for a single element.

        Raises RuntimeError where no gradient can flow, after the records were freed by an earlier
        call, where a parameter has changed since the forward pass, or where the seed is missing;
        TypeError for a seed that is no array, ValueError for one of another shape or dtype.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward() on a tensor that needs no gradient: it was made under no_grad(), or nothing "
                "it was computed from has requires_grad=True"
            )
        if grad is None:
            if self.data.size != 1:
                raise RuntimeError(
                    f"backward() on a tensor of shape {self.shape} needs a seed gradient; "
                    "reduce it to a scalar loss first or pass backward(grad)"
                )
            grad = like(self.data, np.ones(self.shape, self.dtype))
        grad = grad.data if isinstance(grad, Tensor) else grad
        grad = np.asarray(grad) if isinstance(grad, np.generic) else grad
        if not isinstance(grad, np.ndarray) and not is_on_gpu(grad):
            raise TypeError(
                f"the seed gradient is a {type(grad).__name__}; give a Tensor or an array of shape "
                f"{self.shape} and dtype {dtype_name(self.dtype)}"
            )
        if is_on_gpu(grad) != is_on_gpu(self.data):
            raise TypeError(
                "the seed gradient and the tensor are not on one device; make the seed with "
                "minitl.tensor(seed, device=device)"
            )
        if tuple(grad.shape) != self.shape or grad.dtype != self.dtype:
            raise ValueError(
                f"the seed gradient has shape {tuple(grad.shape)} and dtype {grad.dtype}; "
                f"this tensor has {self.shape} and {self.dtype}"
            )
        if self._op is None:
            self._accumulate(grad)
        else:
            _walk(self._op, grad)

    def _accumulate(self, grad: Array) -> None:
        if self.grad is not None:
            if is_on_gpu(grad):
                assign(self.grad, kernels_for(grad).add_forward(self.grad, grad))
            else:
                self.grad += grad
        elif self.grad_buffer is not None:
            assign(self.grad_buffer, grad)
            self.grad = self.grad_buffer
        else:
            # A copy: the same array may be on its way to other tensors as well.
            self.grad = copied(grad)


class Op:
    """One operation; an instance is the record of one use of it.

    A subclass names in `saves` the attributes its backward needs, and defines

        forward(self, *arrays, **options) -> array
            computes, and stores what is declared, but only what the gradients in `needs_grad` ask for
        backward(self, dy) -> tuple of one gradient (or None) per input
            computes only the gradients that `needs_grad` asks for

    Both find the kernels of the device in `self.kernels`. Inputs are of one dtype; where activations are
    bfloat16, those at the positions in `parameters` are float32, and so are their gradients.

    Where the kernels can do it without a pass of its own (FUSES_DX), two neighbours share work in backward:

        finishes_dx    backward adds `rest`, what has arrived of the gradient of the first input already, to
                       its own; and if `cut` is set, it keeps the sum only where that input, a ReLU's result,
                       is positive
        rectified      set in forward, where the result is a ReLU's: if `dy_is_cut` is set then, the last of
                       the operations that use the result has done so, and backward need not
    """

    saves: ClassVar[tuple[str, ...]] = ()
    parameters: ClassVar[tuple[int, ...]] = ()

    kernels: ModuleType
    needs_grad: tuple[bool, ...]
    finishes_dx: bool = False
    rest: Array | None = None
    cut: bool = False
    rectified: bool = False
    dy_is_cut: bool = False
    _users: int = 0  # records that use the result and have not passed its gradient on
    _order: int
    _kept: "list[tuple[Tensor, int]]"  # leaves whose values backward needs, with their versions
    _sources: "tuple[Op | Tensor | None, ...]"

    _counter: ClassVar = itertools.count()

    def forward(self, *arrays: Any, **options: Any) -> Array:
        """Compute the result."""
        raise NotImplementedError

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute the gradients of the inputs from the gradient of the result."""
        raise NotImplementedError

    @classmethod
    def apply(cls, *inputs: Tensor | None, **options: Any) -> Tensor:
        """Run the operation on tensors (None stands for an absent optional input)."""
        op = cls()
        first = _check_inputs(cls, inputs)
        op.kernels = kernels_for(first.data)
        op.needs_grad = tuple(
            _mode.grad_enabled and t is not None and t.requires_grad for t in inputs
        )
        data = op.forward(*(None if t is None else t.data for t in inputs), **options)
        if _mode.detect_anomaly:
            _require_finite(data, f"the result of {cls.__name__}, shape {tuple(data.shape)}")
        result = Tensor(data)
        if _mode.uses is not None:
            _mode.uses.append(Use(cls, inputs, options, result))
        if any(op.needs_grad):
            op._sources = tuple(
                (t._op or t) if t is not None and needs else None
                for t, needs in zip(inputs, op.needs_grad, strict=True)
            )
            for source in op._sources:
                if isinstance(source, Op):
                    source._users += 1
            op._order = next(Op._counter)
            op._kept = _leaves_kept(op, inputs)
            result.requires_grad = True
            result._op = op
        return result

    @property
    def freed(self) -> bool:
        """Whether backward has been through this record."""
        return not self._sources

    def _free(self) -> None:
        self._sources = ()
        self._kept = []
        for name in self.saves:
            self.__dict__.pop(name, None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.saves and name not in Op.__annotations__:
            raise AttributeError(
                f"{type(self).__name__} stores {name!r} without declaring it in `saves`"
            )
        self.__dict__[name] = value


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of an operation: `op.apply(*inputs, **options)` gave `result`."""

    op: type[Op]
    inputs: tuple[Tensor | None, ...]
    options: dict[str, Any]
    result: Tensor


def _check_inputs(op: type[Op], inputs: tuple[Tensor | None, ...]) -> Tensor:
    """Raise TypeError unless these are tensors that can be computed with together; return the first."""
    for t in inputs:
        if t is not None and not isinstance(t, Tensor):
            raise TypeError(
                f"{op.__name__} works on minitl tensors, not {type(t).__name__}; wrap it: minitl.tensor(x)"
            )
    given = [(position, t) for position, t in enumerate(inputs) if t is not None]
    first = given[0][1]
    for position, t in given:
        wanted = real(first.dtype) if position in op.parameters else first.dtype
        if t.dtype != wanted:
            raise TypeError(
                f"{op.__name__} got {dtype_name(first.dtype)} and {dtype_name(t.dtype)}; convert one: "
                "mixing is never silent"
            )
        if is_on_gpu(t.data) != is_on_gpu(first.data):
            raise TypeError(
                f"{op.__name__} got tensors of the CPU and of the GPU; move the model with "
                ".to(device), and make inputs with minitl.tensor(x, device=device)"
            )
    return first


def _leaves_kept(op: Op, inputs: tuple[Tensor | None, ...]) -> list[tuple[Tensor, int]]:
    """Return the leaves whose arrays the record keeps, with their versions: what is kept is not copied."""
    saved = {id(value) for value in op.__dict__.values()}
    return [
        (t, t._version) for t in inputs if t is not None and t._op is None and id(t.data) in saved
    ]


def _walk(last: Op, seed: Array) -> None:
    """Carry `seed` from the newest record down to the leaves."""
    gradients: dict[Op, Array] = {last: seed}
    queued = {last}
    waiting: list[tuple[int, Op]] = [(-last._order, last)]
    while waiting:
        _, op = heapq.heappop(waiting)
        dy = gradients.pop(op)
        if op.freed:
            raise RuntimeError(
                f"backward() a second time through {type(op).__name__}: its saved values were freed by "
                "the first call; run the forward pass again, or add the losses before one backward()"
            )
        for leaf, version in op._kept:
            if leaf._version != version:
                raise RuntimeError(
                    f"backward() through {type(op).__name__}: its weight of shape {leaf.shape} was changed "
                    "after the forward pass, by an optimizer's step or load_state_dict(); call every "
                    "backward() before the step, or run the forward pass again"
                )
        first = op._sources[0]
        if op.finishes_dx and op.kernels.FUSES_DX and isinstance(first, Op):
            op.rest = gradients.pop(first, None)
            op.cut = first.dy_is_cut = first.rectified and first._users == 1
        results = op.backward(dy)
        del dy
        op.rest = None
        for source, gradient in zip(op._sources, results, strict=True):
            if isinstance(source, Op):
                source._users -= 1
            if source is None or gradient is None:
                continue
            if _mode.detect_anomaly:
                _require_finite(gradient, f"a gradient computed by {type(op).__name__}")
            if isinstance(source, Tensor):
                source._accumulate(gradient)
            elif source in gradients:
                gradients[source] = op.kernels.add_forward(gradients[source], gradient)
            else:
                gradients[source] = gradient
            if isinstance(source, Op) and source not in queued:
                queued.add(source)
                heapq.heappush(waiting, (-source._order, source))
        del results
        op._free()


def _require_finite(array: Array, what: str) -> None:
    array = to_host(array)
    if array.dtype == BFLOAT16:
        array = widen(array)
    if not np.isfinite(array).all():
        bad = "NaN" if np.isnan(array).any() else "an infinity"
        raise FloatingPointError(f"{bad} in {what}; the operations before it were finite")


def tensor(data: Any, requires_grad: bool = False, *, device: str | Device | None = None) -> Tensor:
    """Make a tensor of an array or nested lists of floats; Python floats become float32.

    device: where it shall be, such as "cpu" or "cuda:0"; None: where the array is. A float32 or float64
    array that is there already is not copied.

    Raises TypeError for other numbers than floats (integers are not converted silently), for what is no
    array and for a Tensor; ValueError for nested lists of unequal lengths; UserError for a device that
    cannot be used.
    """
    if isinstance(data, Tensor):
        raise TypeError("minitl.tensor() got a Tensor; use .detach() for one outside the graph")
    if not hasattr(data, "dtype"):
        given, data = type(data).__name__, np.asarray(data)
        if data.dtype not in FLOATS:
            raise TypeError(
                f"minitl.tensor() got a {given} of {data.dtype}; write floats, such as [1.0, 2.0], or give "
                "numpy.array(..., numpy.float32)"
            )
        data = data.astype(np.float32)  # Python's floats are float64 for want of another
    if device is not None:
        data = get_device(device).array(data)
    return Tensor(data, requires_grad)


__all__ = ["Op", "Tensor", "Use", "detect_anomaly", "no_grad", "record_uses", "tensor"]
