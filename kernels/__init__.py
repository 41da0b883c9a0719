"""Kernels: one package for each backend."""
