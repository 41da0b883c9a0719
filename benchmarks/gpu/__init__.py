"""`python -m benchmarks gpu`: everything that only a graphics card can show, in one unattended run.

run.py       the stages, one process each, so that a failing one costs no other; the clock; the files
goldens      what the instructions in kernels/cuda/ptx.cuh really return (tests/cuda_on_cpu/goldens.py)
kernels.py   convolutions beside cuDNN, memory-bound kernels beside a copy
step.py      whole steps beside PyTorch, eager and compiled
timing.py    the GPU's time for recorded calls, by turns
report.py    tables and plots
"""
