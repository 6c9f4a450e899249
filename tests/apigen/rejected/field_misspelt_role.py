"""api/cuda/bad.py:6: CUplace: no role of a field is called 'devise', as id has it; did you mean 'device'?"""

from tensor_fusion.apigen.describe import struct

STRUCTS = [
    struct("CUplace", id="devise"),
]
