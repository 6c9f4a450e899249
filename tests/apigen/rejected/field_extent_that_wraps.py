"""api/cuda/bad.py:6: CUfooItem: the length 'width - height' of dst is no sum, product or extent of ['area', 'box']"""

from tensor_fusion.apigen.describe import struct

STRUCTS = [
    struct("CUfooItem", dst="dev width - height"),
]
