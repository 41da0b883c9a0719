"""CUDA kernels: the same names and signatures as `minitl.kernels.cpu`, on CuPy arrays."""
