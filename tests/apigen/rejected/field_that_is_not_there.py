"""api/cuda/bad.py:6: CUplace: has no field 'ident'"""

from tensor_fusion.apigen.describe import struct

STRUCTS = [
    struct("CUplace", ident="device"),
]
