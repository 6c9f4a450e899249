"""api/cuda/bad.py:6: CUfooItem: dst is 'dev', for which no error can be said"""

from tensor_fusion.apigen.describe import struct

STRUCTS = [
    struct("CUfooItem", dst="dev width or CUDA_ERROR_INVALID_VALUE", pad="none"),
]
