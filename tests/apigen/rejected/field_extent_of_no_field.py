"""api/cuda/bad.py:6: CUfooItem: the length 'area(pitch, width, height)' of dst has no field 'pitch'; did you mean 'width'?"""

from tensor_fusion.apigen.describe import struct

STRUCTS = [
    struct("CUfooItem", dst="dev area(pitch, width, height)"),
]
