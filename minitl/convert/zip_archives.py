"""What is told of zip archives, in which PyTorch and Keras 3 keep weights."""

import struct
import zipfile
import zlib

MAGIC = b"PK\x03\x04"  # how one begins
# What zipfile raises on damaged archives.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
)

__all__ = ["DAMAGE", "MAGIC"]
