"""api/cuda/bad.py:6: CUfooParams: u is told by count, whose type unsigned int is no enumeration"""

from tensor_fusion.apigen.describe import struct, tagged

STRUCTS = [
    struct(
        "CUfooParams",
        place="struct",
        items="structs CUfooItem count",
        security="none",
        next="none",
        u=tagged("count", {}, refuse=("*",)),
    ),
]
