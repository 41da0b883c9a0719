"""Runs our CUDA kernels on the CPU and watches what they do; see README.md."""
