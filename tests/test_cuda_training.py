"""Training on a GPU, by a fake of CuPy and the CUDA kernels run on the CPU: what the CPU backend gives.

What is left for a real GPU to show is speed, its own rounding, and that CUDA is as the fake takes it to be.
"""

import csv
import json
import threading

import numpy as np
import pytest

import minitl
from minitl import hdf5, models, nn, ops, optim
from minitl.backend import BFLOAT16, kernel_module, narrow, widen
from minitl.cli import main
from minitl.data.augment import Augmentation
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
from minitl.data.views import ViewLoader
from minitl.device import CPU, dtype_of, get_device
from minitl.errors import UserError, WeightsFileError
from minitl.models import resnet
from minitl.tensor import Tensor
from minitl.train import recording
from minitl.train.attack import Attack
from minitl.train.averaging import WeightAverage
from minitl.train.batches import Inputs, on_device
from minitl.train.forward import Forward
from minitl.train.inference import Inference
from minitl.train.metrics import softmax
from minitl.train.mixing import mix
from minitl.train.robustness import under_attack
from minitl.train.step import TrainingStep
from minitl.train.view_probabilities import probabilities
from tests.cuda_launch import needs_checker
from tests.cuda_on_cpu.fake_cupy import install
from tests.test_finetune import interrupt_in_epoch, write_pictures

pytestmark = needs_checker


@pytest.fixture(autouse=True)
def exact():
    before = kernel_module("cpu").set_conv_algorithm("exact")
    yield
    kernel_module("cpu").set_conv_algorithm(before)


@pytest.fixture(params=[False, True], ids=["at once", "late"])
def gpu(request):
    with install(mode="fast", late=request.param) as gpu:
        yield gpu


def batch(device, n=4, seed=0, side=8):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, n)
    x = random.normal(size=(n, side, side, 3)).astype(np.float32)
    return Inputs(device.array(x), device.array(labels), labels)


def small_resnet():
    return models.create("cifar_resnet20", num_classes=5, seed=1, width=4, shortcut="A")


class Small(nn.Module):
    """Some of everything that changes from step to step, statistics and dropout, in few kernels."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False, rng=rng)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3, seed=5)
        self.fc = nn.Linear(512, 5, rng=rng)

    def forward(self, x):
        y = self.bn.after(self.conv, x, relu=True)
        y = self.drop(ops.flatten(y))
        return self.fc(self.drop(y))


def train(
    device,
    sizes,
    make=Small,
    optimizer="SGD",
    micro_batch=None,
    before=lambda step: None,
    mixes=False,
    **more,
):
    """Take a step for each of `sizes`; return the model's state, the results, and the step."""
    model = make().to(device)
    options = {"momentum": 0.9, "nesterov": True} if optimizer == "SGD" else {}
    chosen = getattr(optim, optimizer)(model.parameters(), lr=0.05, weight_decay=1e-3, **options)
    more |= {"label_smoothing": 0.1, "micro_batch": micro_batch}
    step = TrainingStep(model, model, chosen, device, **more)
    with device.computing():
        for number, n in enumerate(sizes):
            inputs = batch(device, n, seed=number)
            if mixes:
                inputs = mix(inputs, 0.4, 0.4, seed=0, epoch=0, batch=number)
            before(step)
            chosen.lr_factor = 1 / (1 + number)
            step(inputs)
        results = step.results()
    return model.state_dict() | chosen.state_dict(), results, step


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], name)


# The same as on the CPU


def test_steps_of_a_resnet_equal_those_of_the_cpu_backend():
    """Forward, backward, statistics and SGD in exact float32, checked for races and bounds as well."""
    state, results, _ = train(CPU, [4, 4], small_resnet)
    with install(mode="check"):
        ours, our_results, _ = train(get_device("cuda"), [4, 4], small_resnet)
    for name, value in state.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    for one, other in zip(results, our_results, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
        assert other[1:] == one[1:]


class Bottlenecks(nn.Module):
    """A ResNet-50 as short and narrow as can be: its stem, the first block, and a stage that begins with a
    stride in the 3x3."""

    def __init__(self):
        style, rng = resnet.Style(), np.random.default_rng(0)
        self.conv1, self.bn1 = style.conv(3, 8, 7, rng, stride=2), style.bn(8)
        self.blocks = nn.Sequential(
            resnet.Bottleneck(8, 8, 1, style, rng),
            resnet.Bottleneck(32, 16, 2, style, rng),
            resnet.Bottleneck(64, 16, 1, style, rng),
        )
        self.fc = nn.Linear(64, 5, rng=rng)
        self.norms = [m for _, m in self.named_modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in self.norms:  # as if it had seen something
            norm.running_mean[...] = rng.normal(0, 0.1, norm.running_mean.shape)
            norm.running_var[...] = rng.uniform(0.5, 1.5, norm.running_var.shape)

    def forward(self, x):
        y = self.bn1(self.conv1(x), relu=True, maxpool=(3, 2, 1))
        return self.fc(ops.global_avgpool2d(self.blocks(y)))


class FixedBottlenecks(Bottlenecks):
    """All convolutions train, and no normalisation: fine-tuning."""

    def __init__(self):
        super().__init__()
        for norm in self.norms:
            norm.frozen = True
            norm.weight.requires_grad = norm.bias.requires_grad = False


@pytest.mark.parametrize("make", [Bottlenecks, FixedBottlenecks])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_steps_with_bottlenecks_equal_those_of_the_cpu_backend(make, precision):
    """In bfloat16 the CPU computes in float32, from the same pictures; the updates have one direction."""

    def updates(device):
        model = make().to(device)
        before = {name: value.copy() for name, value in model.state_dict().items()}
        optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        step = TrainingStep(model, model, optimizer, device)
        with device.computing(precision if device.kind == "cuda" else "float32"):
            for number in range(2):
                x, labels, host_labels, _ = batch(CPU, seed=number, side=22)
                x = narrow(x) if precision == "bf16" else x
                x = x if device.kind == "cuda" or precision == "float32" else widen(x)
                step(Inputs(device.array(x), device.array(labels), host_labels))
            losses = [result.loss for result in step.results()]
        changes = {name: value - before[name] for name, value in model.state_dict().items()}
        return changes, losses

    expected, losses = updates(CPU)
    with install(mode="check" if precision == "float32" else "fast"):
        found, our_losses = updates(get_device("cuda"))
    assert found.keys() == expected.keys()
    still = [name for name, change in expected.items() if not change.any()]
    assert len(still) == (4 * 12 if make is FixedBottlenecks else 0)
    assert our_losses == pytest.approx(losses, rel=1e-5 if precision == "float32" else 2e-2)
    for name, change in expected.items():
        ours = found[name]
        if precision == "float32":
            scale = np.abs(change).max()
            np.testing.assert_allclose(ours, change, rtol=1e-3, atol=1e-4 * scale, err_msg=name)
        else:
            together = np.linalg.norm(ours) * np.linalg.norm(change)
            # Rounding moves the statistics of a few pixels as well.
            least = 0.97 if make is FixedBottlenecks else 0.85
            assert ours.ravel() @ change.ravel() >= least * together, name


def test_weights_of_classes_count_as_on_the_cpu(gpu):
    def train_with_weights(device):
        model = Small().to(device)
        optimizer = optim.SGD(model.parameters(), lr=0.05)
        weights = np.linspace(0.5, 2, 5, dtype=np.float32)
        step = TrainingStep(model, model, optimizer, device, class_weights=weights)
        with device.computing():
            for number in range(recording.EAGER + 2):
                step(batch(device, seed=number))
            return [result.loss for result in step.results()]

    here, there = map(train_with_weights, (CPU, get_device("cuda")))
    assert there == pytest.approx(here, rel=1e-5)


@pytest.mark.parametrize("mixes", [False, True], ids=["plain", "mixed"])
def test_weights_of_classes_count_in_parts_as_in_whole_batches(gpu, monkeypatch, mixes):
    """What a part weighs changes from step to step, in recorded ones too."""

    class Steady(Small):
        """Without batch statistics, which are those of a part."""

        def forward(self, x):
            self.bn.frozen = True
            return self.fc(ops.flatten(self.bn.after(self.conv, x, relu=True)))

    sizes, weights = [4, 4, 4, 3, 4, 4, 4], np.array([0.1, 5, 1, 0.3, 2], np.float32)
    options = {"make": Steady, "class_weights": weights, "mixes": mixes}
    whole, whole_results, _ = train(CPU, sizes, **options)
    parts, results, step = train(get_device("cuda"), sizes, micro_batch=2, **options)
    assert step._recorder.recorded
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    for mine, other in zip(results, whole_results, strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=1e-4)
    monkeypatch.setattr(recording, "EAGER", 100)
    as_code, _, step = train(get_device("cuda"), sizes, micro_batch=2, **options)
    assert not step._recorder.recorded
    assert_same(parts, as_code)


def test_the_average_of_the_weights_is_that_of_the_cpu(gpu):
    def averages(device):
        model = Small().to(device)
        step = TrainingStep(model, model, optim.SGD(model.parameters(), lr=0.05), device)
        with device.computing():
            average = WeightAverage(model, 0.9)
            for number in range(recording.EAGER + 2):
                step(batch(device, seed=number))
                average.update()
            with average.in_use():
                return {name: value.copy() for name, value in model.state_dict().items()}

    here, there = map(averages, (CPU, get_device("cuda")))
    assert here.keys() == there.keys()
    for name, value in here.items():
        np.testing.assert_allclose(there[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("state", ["training", "frozen", "evaluation"])
def test_bfloat16_is_close_to_float32(state):
    model, x = small_resnet(), np.random.default_rng(0).normal(size=(4, 8, 8, 3))
    labels = np.arange(4)
    if state == "frozen":
        model.freeze("bn1", "layer1")
    x = narrow(x)

    def run(model, x):
        model.train(state != "evaluation")
        logits = model(Tensor(x))
        ops.softmax_cross_entropy(logits, labels).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return logits, gradients

    right, gradients = run(model, widen(x))
    with install(mode="fast"):
        device = get_device("cuda")
        logits, ours = run(small_resnet_like(model).to(device), device.array(x))
        assert logits.dtype == BFLOAT16
        scale = np.abs(right.data).max()
        assert np.abs(logits.numpy() - right.data).max() < 0.05 * scale
        assert ours.keys() == gradients.keys()
        assert all(gradient.dtype == np.float32 for gradient in ours.values())
        mine, theirs = (
            np.concatenate([gradients[name].ravel() for name in gradients])
            for gradients in ({n: Tensor(g).numpy() for n, g in ours.items()}, gradients)
        )
        # 8 bits, through 20 layers with kinks and the statistics of few pixels.
        assert mine @ theirs > 0.95 * np.linalg.norm(mine) * np.linalg.norm(theirs)


def small_resnet_like(model):
    other = small_resnet()
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        mine.requires_grad = theirs.requires_grad
    for (_, mine), (_, theirs) in zip(other.named_modules(), model.named_modules(), strict=True):
        if isinstance(mine, nn.BatchNorm2d):
            mine.frozen = theirs.frozen
    return other


# Recorded steps


@pytest.mark.parametrize(
    ("optimizer", "micro_batch"), [("SGD", None), ("Adam", None), ("AdamW", 2), ("SGD", 3)]
)
def test_recorded_steps_equal_steps_that_run_as_code(gpu, monkeypatch, optimizer, micro_batch):
    """The rate, Adam's count and the dropout masks change; smaller batches come in between."""
    sizes = [4, 4, 3, 4, 4, 4, 3, 4, 4]
    device = get_device("cuda")
    ours, results, step = train(device, sizes, Small, optimizer, micro_batch)
    assert step._recorder.recorded
    monkeypatch.setattr(recording, "EAGER", 100)
    theirs, their_results, step = train(device, sizes, Small, optimizer, micro_batch)
    assert not step._recorder.recorded
    assert_same(ours, theirs)
    assert results == their_results
    assert len({result.loss for result in results}) == len(sizes)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_recorded_steps_with_clipped_gradients_on_mixed_pictures(gpu, monkeypatch, micro_batch):
    """How much a picture's own label counts, and how much is clipped, changes from step to step."""
    sizes, device = [4, 4, 4, 3, 4, 4, 4], get_device("cuda")
    options = {"micro_batch": micro_batch, "mixes": True, "clip_norm": 0.5}
    ours, results, step = train(device, sizes, **options)
    assert step._recorder.recorded
    monkeypatch.setattr(recording, "EAGER", 100)
    theirs, their_results, step = train(device, sizes, **options)
    assert not step._recorder.recorded
    assert_same(ours, theirs)
    assert results == their_results
    on_cpu, their_results, _ = train(CPU, sizes, **options)
    for name, value in on_cpu.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    for mine, other in zip(results, their_results, strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=1e-4)


def test_a_mixed_batch_after_plain_ones_makes_a_new_recording(gpu):
    device, model = get_device("cuda"), Small().to(get_device("cuda"))
    step = TrainingStep(model, model, optim.SGD(model.parameters(), lr=0.01), device)
    with device.computing():
        for number in range(5):
            step(batch(device, seed=number))
        assert step._recorder.recorded
        step(mix(batch(device), 0.4, 0, seed=0, epoch=0, batch=0))
        assert not step._recorder.recorded


def test_dropout_and_the_optimizer_count_on_in_recorded_steps(gpu):
    state, _, step = train(get_device("cuda"), [4] * 6, optimizer="Adam")
    assert step._recorder.recorded
    assert state["parameters.0.steps"] == 6
    assert step._model.drop.offset == 6 * 2 * 4 * 512


def test_what_a_recorded_step_depends_on_makes_a_new_one(gpu):
    def change(step):
        if step._recorder.recorded:
            step._optimizer.param_groups[0]["momentum"] = 0.5

    changed, _, step = train(get_device("cuda"), [4] * 6, before=change)
    assert not step._recorder.recorded
    same, _, _ = train(get_device("cuda"), [4] * 6)
    assert not np.array_equal(changed["fc.weight"], same["fc.weight"])


def test_nothing_waits_for_the_gpu_while_it_trains(gpu):
    waits = []

    def watch(step):
        waits.append(list(gpu.synchronisations))
        gpu.synchronisations.clear()

    train(get_device("cuda"), [4] * 9, before=watch)
    # Only before the numbers of a step so far back are written over.
    one_by_one, recorded = 1 + recording.EAGER, recording.RING
    assert not any(waits[1 : one_by_one + recorded])
    assert all(w == ["Event.synchronize"] for w in waits[one_by_one + recorded + 1 :])


@pytest.mark.parametrize("n", [1, 2])
def test_small_batches_are_recorded_without_a_kernel_of_cupys(gpu, n):
    """Copies of arrays whose first axis has one element are CuPy's own kernels, unless one takes care."""

    class OneOutput(Small):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(512, 1, rng=np.random.default_rng(0))

    device = get_device("cuda")
    model = OneOutput().to(device)
    step = TrainingStep(model, model, optim.SGD(model.parameters(), lr=0.05, momentum=0.9), device)
    with device.computing():
        average = WeightAverage(model, 0.9)
        for number in range(recording.EAGER + 3):
            inputs = batch(device, n, seed=number)
            labels = np.zeros(n, np.int64)
            step(inputs._replace(labels=device.array(labels), host_labels=labels))
            average.update()
        with average.in_use():
            assert step._recorder.recorded
        assert len(step.results()) == recording.EAGER + 3


# Memory


def test_a_limit_of_memory_takes_nothing_from_a_recording(gpu):
    """At its limit a pool gives back what is unused, of which the graph already has the addresses."""
    cupy = gpu.cupy

    def compute(x):
        y = cupy.zeros(1024, np.uint8)
        del y
        if cupy.cuda.get_current_stream().is_capturing():
            y = cupy.zeros(4096, np.uint8)
            del y
        return [(kernel_module("cuda").relu_forward(x),)]

    with get_device("cuda").computing():
        x = cupy.asarray(np.array([-1, 2], np.float32))
        recorder = recording.Recorder(compute)
        recorder._limit = 2048
        recorder.forget()
        for _ in range(recording.EAGER + 2):
            ((y,),) = recorder.step("key", x)
        assert recorder.recorded
        assert y.get().tolist() == [0, 2]
        assert recorder._pool.get_limit() == 0
        recorder.forget()
        assert recorder._pool.get_limit() == 2048


def test_memory_that_the_driver_lacks_is_a_reason_for_smaller_parts_too(gpu, capsys):
    """It wants some for the code of kernels and their stacks; CuPy hands its error on as it is."""

    class Full(Small):
        def forward(self, x):
            if x.shape[0] > 2:
                raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")
            return super().forward(x)

    _, results, step = train(get_device("cuda"), [4] * 3, Full)
    assert (step.micro_batch, len(results)) == (2, 3)
    assert "does not hold a step with 4 pictures" in capsys.readouterr().out


def memory_for(micro_batch, steps):
    """Return what the memory pools hold after steps with so many pictures at a time."""
    with install(mode="fast") as gpu:
        train(get_device("cuda"), [64] * steps, micro_batch=micro_batch)
        return gpu.allocated


def test_a_step_that_does_not_fit_goes_on_with_smaller_parts(capsys):
    enough, too_little = memory_for(32, steps=5), memory_for(64, steps=1)
    assert enough < too_little
    memory = (enough + too_little) // 2
    sizes = [64] * 5
    with install(mode="fast", memory=memory) as gpu:
        ours, results, step = train(get_device("cuda"), sizes)
        assert gpu.allocated <= memory
    assert step.micro_batch == 32
    assert step._recorder.recorded
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert "does not hold a step with 64 pictures; going on with at most 32 at a time" in text
    assert "batch statistics" in text
    with install(mode="fast"):
        theirs, their_results, _ = train(get_device("cuda"), sizes, micro_batch=32)
    assert_same(ours, theirs)  # the failed attempt left no trace, in masks and statistics either
    assert results == their_results


def test_what_the_usual_pool_keeps_unused_is_memory_for_a_step(capsys):
    memory = memory_for(64, steps=5)
    with install(mode="fast", memory=memory) as gpu:
        unused = gpu.cupy.empty(memory // 2, np.uint8)
        del unused
        _, _, step = train(get_device("cuda"), [64] * 5)
    assert step.micro_batch is None
    assert step._recorder.recorded
    assert capsys.readouterr().out == ""


def test_a_single_picture_that_does_not_fit_is_an_error():
    with install(mode="fast") as gpu:
        device = get_device("cuda")
        model = Small().to(device)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        step = TrainingStep(model, model, optimizer, device)
        inputs = batch(device)
        before = model.state_dict()
        gpu.memory = gpu.allocated + 4096
        with pytest.raises(UserError, match="a single picture"):
            step(inputs)
        assert_same(model.state_dict(), before)


@pytest.mark.parametrize("needed_for", ["its numbers", "its graph"])
def test_without_memory_for_a_recording_steps_stay_code(monkeypatch, capsys, needed_for):
    with install(mode="fast") as gpu:

        def fail():
            raise gpu.cupy.cuda.memory.OutOfMemoryError(1, 1)

        def fail_at_the_end(stream):
            end_capture(stream)
            raise gpu.cupy.cuda.runtime.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")

        end_capture = gpu.cupy.cuda.Stream.end_capture
        with monkeypatch.context() as patch:
            if needed_for == "its numbers":
                patch.setattr(recording, "_Numbers", fail)
            else:
                patch.setattr(gpu.cupy.cuda.Stream, "end_capture", fail_at_the_end)
            ours, _, step = train(get_device("cuda"), [4] * 6)
        assert not step._recorder.recorded
        assert step.micro_batch is None
        theirs, _, _ = train(get_device("cuda"), [4] * 6)
    assert_same(ours, theirs)
    assert capsys.readouterr().out.count("launched one by one") == 1


@pytest.mark.parametrize(
    ("fails", "optimizer"),
    [("begin_capture", "SGD"), ("end_capture", "Adam"), ("inside", "SGD"), ("launch", "Adam")],
)
def test_a_step_that_cannot_be_recorded_stays_code(gpu, monkeypatch, capsys, fails, optimizer):
    """Whatever the driver objects to: said once, and what the attempt has changed is put back."""
    text = "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"

    def fail(*_):
        raise gpu.cupy.cuda.runtime.CUDARuntimeError(text)

    class Objects(Small):
        def forward(self, x):
            logits = super().forward(x)
            if fails == "inside" and gpu.cupy.cuda.get_current_stream().is_capturing():
                logits.numpy()
            return logits

    device, end = get_device("cuda"), gpu.cupy.cuda.Stream.end_capture
    failing = {
        "begin_capture": (gpu.cupy.cuda.Stream, fail),
        "end_capture": (gpu.cupy.cuda.Stream, lambda stream: fail(end(stream))),
        "launch": (gpu.cupy.cuda.Graph, fail),
    }
    with monkeypatch.context() as patch:
        if fails in failing:
            where, function = failing[fails]
            patch.setattr(where, fails, function)
        ours, results, step = train(device, [4] * 7, Objects, optimizer, micro_batch=2)
    assert not step._recorder.recorded
    assert step.micro_batch == 2
    said = capsys.readouterr().out
    assert said.count("\n") == said.count("launched one by one") == 1
    words = "CUDARuntimeError: cudaErrorStreamCaptureUnsupported"
    if fails == "inside":
        words = "RuntimeError: the current stream is capturing"
    assert f"cannot be recorded ({words}" in said
    theirs, their_results, step = train(device, [4] * 7, Small, optimizer, micro_batch=2)
    assert step._recorder.recorded
    assert_same(ours, theirs)
    assert results == their_results


def test_an_error_that_is_not_about_recording_is_not_caught(gpu):
    class Broken(Small):
        def forward(self, x):
            raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        train(get_device("cuda"), [4], Broken)


def test_a_recording_keeps_the_memory_that_it_has_used(capsys):
    """Where the recorded step needs more than those before, and the driver has nothing left."""

    class Greedy(Small):
        def forward(self, x):
            logits = super().forward(x)
            stream = gpu.cupy.cuda.get_current_stream()
            if stream.is_capturing():
                gpu.memory = gpu.allocated
                gpu.cupy.empty(2900, np.uint8)
            return logits

    with install(mode="fast") as gpu:
        ours, _, step = train(get_device("cuda"), [4] * 6, Greedy)
        assert not step._recorder.recorded
        gpu.memory = 1 << 33
        theirs, _, _ = train(get_device("cuda"), [4] * 6)
    assert_same(ours, theirs)
    assert capsys.readouterr().out.count("launched one by one") == 1


def test_a_recording_makes_room_for_a_smaller_batch(capsys):
    """Its memory cannot be used by others; so it is dropped, and made again later."""
    recorded = []

    with install(mode="fast") as gpu:

        def tighten(step):
            recorded.append(step._recorder.recorded)
            if recorded[-1] and recorded.count(True) == 1:
                gpu.memory = gpu.allocated

        ours, _, _ = train(get_device("cuda"), [4, 4, 4, 4, 3, 4, 4, 4, 4, 4], before=tighten)
        gpu.memory = 1 << 33
        theirs, _, _ = train(get_device("cuda"), [4, 4, 4, 4, 3, 4, 4, 4, 4, 4])
    assert recorded == [False] * 4 + [True] + [False] * 4 + [True]
    assert_same(ours, theirs)
    assert capsys.readouterr().out == ""


# Networks that are only asked


def ask(device, sizes, precision="float32"):
    """Return the logits of batches of these sizes, and whether they came from a recording in the end."""
    model = small_resnet().to(device)
    model.eval()
    batches = [batch(device, n, seed=number).x for number, n in enumerate(sizes)]
    with device.computing(precision), Inference(model, device) as infer:
        logits = [infer(device.kernels.cast(x, dtype_of(precision))) for x in batches]
        recorded = infer._recorder is not None and infer._recorder.recorded
        return [rows.numpy() for rows in logits], recorded


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_recorded_forward_passes_equal_those_that_run_as_code(gpu, monkeypatch, precision):
    sizes, device = [3, 4, 4, 4, 4, 4, 2, 4], get_device("cuda")
    ours, recorded = ask(device, sizes, precision)
    assert recorded
    monkeypatch.setattr(recording, "EAGER", 100)
    theirs, recorded = ask(device, sizes, precision)
    assert not recorded
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({rows.tobytes() for rows in ours}) == len(sizes)
    if precision == "float32":
        for one, other in zip(ours, ask(CPU, sizes)[0], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_forward_passes_that_cannot_be_recorded_stay_code(gpu, monkeypatch, capsys):
    sizes, device = [4] * 7, get_device("cuda")
    theirs, _ = ask(device, sizes)
    with monkeypatch.context() as patch:

        def fail(stream, mode=None):
            raise gpu.cupy.cuda.runtime.CUDARuntimeError("cudaErrorUnknown: unknown error")

        patch.setattr(gpu.cupy.cuda.Stream, "begin_capture", fail)
        ours, recorded = ask(device, sizes)
    assert not recorded
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    said = capsys.readouterr().out
    assert said.count("\n") == said.count("CUDARuntimeError: cudaErrorUnknown") == 1


def test_without_memory_of_its_own_a_forward_pass_is_code(monkeypatch, capsys):
    """Before there is a recording, too: what it would need may lie unused in the usual pool."""
    with install(mode="fast") as gpu:

        def fail(pool, size):
            raise gpu.cupy.cuda.memory.OutOfMemoryError(size, 0)

        theirs, _ = ask(get_device("cuda"), [4, 4])
        usual, malloc = gpu.pool, gpu.cupy.cuda.MemoryPool.malloc
        choose = lambda pool, size: (malloc if pool is usual else fail)(pool, size)  # noqa: E731
        monkeypatch.setattr(gpu.cupy.cuda.MemoryPool, "malloc", choose)
        ours, recorded = ask(get_device("cuda"), [4, 4])
    assert not recorded
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert capsys.readouterr().out.count("does not hold a recorded step") == 1


def test_evaluation_and_prediction_replay_what_they_have_recorded(
    gpu, weights, tmp_path, monkeypatch
):
    samples, root = pictures_of(tmp_path)
    launched, launch = [], gpu.cupy.cuda.Graph.launch
    monkeypatch.setattr(
        gpu.cupy.cuda.Graph, "launch", lambda *a: (launched.append(1), launch(*a))[1]
    )
    device, model = get_device("cuda"), minitl.load_model(weights)
    preprocessing = Preprocessing.from_dict(model.preprocessing)
    samples = samples[:12]
    with device.computing():
        loader = Loader(samples, root, preprocessing, 2, normalise=False)
        logits, _ = Forward(model.to(device), loader, 0, "pictures", device).logits()
    assert len(launched) == 6 - recording.EAGER
    monkeypatch.setattr("minitl.data.views.AT_ONCE", 2)
    loader = ViewLoader(samples, root, preprocessing, normalise=False)
    said = np.concatenate(list(probabilities(model, loader, device, "float32")))
    assert len(launched) == 2 * (6 - recording.EAGER)
    np.testing.assert_allclose(said, softmax(logits), rtol=1e-6)
    here = Forward(model.to(CPU), Loader(samples, root, preprocessing, 2), 0, "pictures").logits()
    np.testing.assert_allclose(logits, here[0], rtol=1e-4, atol=1e-5)


# Batches


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_pictures_are_prepared_as_on_the_cpu(gpu, tmp_path, precision):
    samples, root = pictures_of(tmp_path)
    preprocessing = Preprocessing(resize=20, crop=16, channel_order="BGR")
    dtype = BFLOAT16 if precision == "bf16" else np.dtype(np.float32)
    arguments = {"seed": 3, "shuffle": True, "augment": Augmentation()}
    loaders = [
        Loader(samples, root, preprocessing, 5, normalise=normalise, **arguments)
        for normalise in (True, False)
    ]
    device = get_device("cuda")
    expected = list(loaders[0].epoch(2))
    with device.computing():
        # Kept, as a step that runs late would see them.
        found = list(on_device(loaders[1].epoch(2), preprocessing, device, dtype))
        for batch, inputs in zip(expected, found, strict=True):
            error = 2**-8 if precision == "bf16" else 1e-6
            np.testing.assert_allclose(Tensor(inputs.x).numpy(), batch.images, error, error)
            np.testing.assert_array_equal(device.array(inputs.labels).get(), batch.labels)
            np.testing.assert_array_equal(inputs.host_labels, batch.labels)


def pictures_of(folder):
    from minitl.data.folder import scan

    write_pictures(folder / "colours")
    dataset = scan(folder / "colours")
    return dataset.train, dataset.root


# Whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "colours", per_class=5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.h5"
    model = models.create("cifar_resnet20", num_classes=5, width=4, shortcut="B", seed=1)
    model.preprocessing |= {"resize": 8, "crop": 8}
    minitl.save_model(model, path)
    return path


@pytest.fixture
def finetune(tmp_path, data, weights, capsys):
    def start(out, *more, **machine):
        arguments = ["finetune", data, "--weights", weights, "--out", tmp_path / out]
        options = ["--epochs", 2, "--batch-size", 4, "--lr", 0.02, "--conv", "exact"]
        with install(mode="fast", **machine):
            code = main([str(a) for a in (*arguments, *options, *more)])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return tmp_path / out, captured.out

    return start


def curve(folder):
    rows = csv.DictReader((folder / "metrics.csv").open())
    names = "train_loss", "train_accuracy", "val_loss", "val_accuracy"
    return np.array([[float(row[name]) for name in names] for row in rows])


def test_a_run_on_the_gpu_gives_the_curve_of_the_cpu(finetune, data, capsys):
    on_cpu, _ = finetune("cpu")
    on_gpu, text = finetune("gpu", "--device", "cuda", late=True)
    assert "computing on cuda in float32" in text
    assert "one by one" not in text
    np.testing.assert_allclose(curve(on_gpu), curve(on_cpu), rtol=2e-4)
    summaries = [json.loads((f / "summary.json").read_text()) for f in (on_cpu, on_gpu)]
    assert [s["device"] for s in summaries] == ["cpu", "cuda"]
    assert summaries[1]["val"]["loss"] == pytest.approx(summaries[0]["val"]["loss"], rel=2e-4)

    def figures(*more):
        with install(mode="fast"):
            assert main(["evaluate", str(on_gpu), str(data), "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    here, there = figures(), figures("--device", "cuda")
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-4)
    half = figures("--device", "cuda:0", "--precision", "bf16")
    assert half["loss"] == pytest.approx(here["loss"], rel=0.05)
    picture = str(next((data / "red").iterdir()))
    with install(mode="fast"):
        assert main(["predict", str(on_gpu), picture, "--device", "cuda"]) == 0
    assert picture in capsys.readouterr().out


def test_clipping_mixing_and_attacks_give_the_curve_of_the_cpu(finetune):
    options = *("--mixup", 0.4, "--cutmix", 1, "--clip-norm", 0.5), *("--adversarial", "fgsm:2")
    options += "--epochs", 1, "--lr", 0.005, "--no-report"
    on_cpu, _ = finetune("cpu", *options)
    on_gpu, _ = finetune("gpu", "--device", "cuda", *options)
    # A gradient near zero may have another sign.
    np.testing.assert_allclose(curve(on_gpu), curve(on_cpu), rtol=5e-3)


def test_robustness_is_that_of_the_cpu(tmp_path, weights):
    samples, root = pictures_of(tmp_path)
    model, attack = minitl.load_model(weights), Attack("pgd", 2.0, steps=2)
    here = under_attack(model, samples[::3], root, attack)
    with install(mode="fast"):
        there = under_attack(model, samples[::3], root, attack, device=get_device("cuda"))
    assert there == here
    assert there["images"] == len(samples[::3])


def test_an_attack_that_does_not_fit_into_memory_is_taken_in_parts(capsys):
    """Each picture's attack is its own affair, so the parts' results are those of the whole."""
    preprocessing, labels = Preprocessing(resize=8, crop=8), np.arange(8) % 5
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    attack = Attack("fgsm", 2.0)
    with install(mode="fast") as gpu:
        device = get_device("cuda")
        model = Small().to(device)
        step = TrainingStep(model, model, optim.SGD(model.parameters(), lr=0.1), device)
        x, labels = device.array(x), device.array(labels)
        whole = attack(model, x, labels, preprocessing)
        gpu.cupy.get_default_memory_pool().free_all_blocks()
        gpu.memory = gpu.allocated + 42_000
        moved = step.within_memory(
            8, lambda: attack(model, x, labels, preprocessing, step.micro_batch)
        )
        assert step.micro_batch == 4
        assert "going on with at most" in capsys.readouterr().out
        assert not any(p.grad is not None for p in model.parameters())
        assert (moved.get() == whole.get()).mean() > 0.999


@pytest.mark.parametrize("precision", [pytest.param("tf32", marks=pytest.mark.slow), "bf16"])
def test_a_run_in_less_precision_is_close(finetune, precision):
    options = "--device", "cuda", "--epochs", 1, "--lr", 0.002
    exact, _ = finetune("exact", *options)
    other, text = finetune("other", *options, "--precision", precision)
    assert f"in {precision}" in text
    assert curve(other)[0, 0] == pytest.approx(curve(exact)[0, 0], rel=0.03)
    assert not np.array_equal(curve(other), curve(exact))
    assert hdf5.read(other / "best.h5").state["conv1.weight"].dtype == np.float32


def test_a_frozen_backbone_trains_its_head_on_kept_features(finetune):
    options = "--freeze", "backbone", "--no-augment"
    on_cpu, _ = finetune("cpu", *options)
    on_gpu, text = finetune("gpu", "--device", "cuda", *options)
    assert "one by one" not in text
    np.testing.assert_allclose(curve(on_gpu), curve(on_cpu), rtol=2e-4)


def test_resuming_on_the_gpu_is_exact(finetune, monkeypatch, capsys):
    whole, _ = finetune("whole", "--device", "cuda")
    interrupt_in_epoch(monkeypatch, 1)
    with pytest.raises(AssertionError, match="resume"):
        finetune("part", "--device", "cuda")
    monkeypatch.undo()
    part = whole.parent / "part"
    with install(mode="fast"):
        assert main(["finetune", "--resume", str(part)]) == 0
    a, b = (hdf5.read(folder / "last.h5") for folder in (whole, part))
    assert_same(a.state, b.state)
    assert_same(a.optimizer, b.optimizer)


def test_steps_go_on_while_an_epoch_is_saved(finetune, monkeypatch):
    """And what is saved is as it was at the epoch's end, however long that takes."""
    plain, _ = finetune("plain", "--device", "cuda")
    stepped, waited = threading.Event(), []
    write, step = hdf5.Prepared.write, TrainingStep.__call__

    def slow(self, path):
        if path.name == "best.h5" and not waited:
            stepped.clear()
            waited.append(stepped.wait(60))
        return write(self, path)

    def noticed(self, inputs):
        step(self, inputs)
        stepped.set()

    monkeypatch.setattr(hdf5.Prepared, "write", slow)
    monkeypatch.setattr(TrainingStep, "__call__", noticed)
    beside, _ = finetune("beside", "--device", "cuda")
    assert waited == [True]
    for name in ("last.h5", "best.h5"):
        a, b = (hdf5.read(folder / name) for folder in (plain, beside))
        assert_same(a.state, b.state)
    np.testing.assert_array_equal(curve(plain), curve(beside))


def test_an_epoch_that_cannot_be_saved_ends_the_run(tmp_path, data, weights, capsys, monkeypatch):
    def full(self, path):
        raise WeightsFileError(f"cannot write {path}: no space left")

    monkeypatch.setattr(hdf5.Prepared, "write", full)
    arguments = ["finetune", data, "--weights", weights, "--out", tmp_path / "run"]
    with install(mode="fast"):
        assert main([str(a) for a in (*arguments, "--device", "cuda", "--epochs", 9)]) == 1
    captured = capsys.readouterr()
    assert "no space left" in captured.err
    assert "epoch   2/9" not in captured.out
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_a_number_is_reported_with_its_step(tmp_path, data, weights, capsys):
    arguments = ["finetune", data, "--weights", weights, "--out", tmp_path / "run"]
    options = ["--device", "cuda", "--lr", "1e30", "--batch-size", 4, "--schedule", "constant"]
    with install(mode="fast"):
        assert main([str(a) for a in (*arguments, *options)]) == 1
    error = capsys.readouterr().err
    assert "the loss became" in error
    assert "in epoch 1, step 2," in error
