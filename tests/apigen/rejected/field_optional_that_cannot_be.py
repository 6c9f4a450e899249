"""api/cuda/bad.py:6: CUfooItem: dst cannot be 'dev' and optional"""

from tensor_fusion.apigen.describe import struct

STRUCTS = [
    struct("CUfooItem", dst="dev? width"),
]
