"""api/cuda/bad.py:6: CUfooParams: items is a pointer: say what it stands for"""

from tensor_fusion.apigen.describe import struct

STRUCTS = [
    struct("CUfooParams", place="struct"),
]
