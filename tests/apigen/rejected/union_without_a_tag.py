"""api/cuda/bad.py:6: CUfooParams: u holds more than values: say what counts, with tagged()"""

from tensor_fusion.apigen.describe import struct

STRUCTS = [
    struct("CUfooParams", place="struct", items="structs CUfooItem count", security="none", next="none"),
]
