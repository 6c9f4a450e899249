"""api/cuda/bad.py:6: CUfooItem: dst is an address of the device: say what it stands for"""

from tensor_fusion.apigen.describe import struct

STRUCTS = [
    struct("CUfooItem"),
]
