"""A plugin of pytest: tests that were written for the CPU compute with the CUDA kernels instead.

    HYPOTHESIS_PROFILE=brief python -m pytest -p tests.cuda_on_cpu.plugin tests/test_conv2d.py

NumPy arrays pass for CuPy's, so `minitl.backend` finds the CUDA launchers for them; the kernels run on the
CPU. `DESELECTED` says which tests stay out, and why.
"""

import contextlib

import pytest
from hypothesis import settings

from tests.cuda_on_cpu.fake_cupy import install

settings.register_profile("brief", derandomize=True, deadline=None, max_examples=4)

THREADS = "counts the CPU's threads"
CPU = "calls or watches a function of kernels.cpu by name"
CPU_CHOICE = "chooses among algorithms of the CPU"
TIME = "the same layers as in smaller networks, at a price"
TAPE = "is about the tape, whatever computes"
MEMORY = "measures the CPU's memory"
DESELECTED = {  # beginning of a test's name: reason
    "test_elementwise.py::test_dropout_does_not_depend_on_the_number_of_threads": THREADS,
    "test_batchnorm.py::test_one_and_two_threads": THREADS,
    "test_batchnorm.py::test_statistics_keep_their_digits": CPU,
    "test_batchnorm.py::test_an_outlier_in_the_first_pixel": CPU,
    "test_batchnorm.py::test_a_constant_channel": CPU,
    "test_batchnorm_relu_maxpool.py::test_one_and_two_threads": THREADS,
    "test_pool.py::test_one_and_two_threads": THREADS,
    "test_tensor.py::test_a_chain_of_5000_operations": TAPE,
    "test_tensor.py::test_dropping_a_very_long_chain": TAPE,
    "test_linear.py::test_the_number_of_threads": THREADS,
    "test_conv2d.py::test_the_number_of_threads": THREADS,
    "test_conv2d_batchnorm.py::test_fixed_statistics_use_the_single_pass": CPU,
    # On the GPU the fused passes round on their own; test_cuda_*.py hold how closely they agree.
    "test_conv2d_batchnorm.py::test_equals_the_convolution_and_the_normalisation": "asks for the same bits",
    "test_nn.py::test_a_frozen_trunk_takes_a_fraction_of_the_memory": MEMORY,
    "test_models.py::test_names_and_shapes": "computes nothing",
    "test_models.py::test_the_usual_preprocessing": "computes nothing",
    "test_models.py::test_initial_weights": "computes nothing",
    "test_models.py::test_xavier": "computes nothing",
    "test_models.py::test_unknown_architecture": "computes nothing",
    # "exact" remains of the algorithms of convolution, which are the CPU's.
    "test_models.py::test_float32_training_step_by_every_algorithm[resnet18-64-auto": CPU_CHOICE,
    "test_models.py::test_float32_training_step_by_every_algorithm[resnet18-64-f": CPU_CHOICE,
    "test_models.py::test_float32_training_step_by_every_algorithm[cifar_resnet20-32-auto": CPU_CHOICE,
    "test_models.py::test_float32_training_step_by_every_algorithm[cifar_resnet20-32-f": CPU_CHOICE,
    "test_models.py::test_logits_and_gradients_of_imagenet_networks": TIME,
    "test_models.py::test_float32_logits_in_evaluation": TIME,
    "test_models.py::test_logits_and_gradients_of_cifar_networks[cifar_resnet20-B": TIME,
    "test_models.py::test_logits_and_gradients_of_cifar_networks[cifar_resnet56": TIME,
    "test_models.py::test_normalisations_with_fixed_statistics_are_part_of_their_convolutions[resnet50": TIME,
    "test_models.py::test_the_second_head_of_inception": TIME,
    "test_models.py::test_logits_and_gradients_of_other_networks[resnet": TIME,
    "test_models.py::test_logits_and_gradients_of_other_networks[vgg": TIME,
    "test_models.py::test_logits_and_gradients_of_other_networks[inception": TIME,
}

_installed = contextlib.ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """Install the fake for the whole run."""
    _installed.enter_context(install(mode="fast", strict=False))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take it away again."""
    _installed.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about the CPU."""
    names = {item: item.nodeid.split("/")[-1] for item in items}
    collected = {name.split("::")[0] for name in names.values()}
    for start in DESELECTED:
        if start.split("::")[0] in collected and not any(
            name.startswith(start) for name in names.values()
        ):
            raise pytest.UsageError(f"no test begins with {start}; take it out of {__file__}")
    out = [item for item in items if names[item].startswith(tuple(DESELECTED))]
    items[:] = [item for item in items if item not in out]
    config.hook.pytest_deselected(items=out)
