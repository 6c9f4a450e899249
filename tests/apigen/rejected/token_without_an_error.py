"""api/cuda/bad.py:6: CUpart: hidden holds a token: that is an array of bytes, with an error for a wrong one"""

from tensor_fusion.apigen.describe import struct

STRUCTS = [
    struct("CUpart", hidden="token"),
]
