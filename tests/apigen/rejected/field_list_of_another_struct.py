"""api/cuda/bad.py:6: CUfooParams: items is CUfooItem *, no list of a declared CUplace"""

from tensor_fusion.apigen.describe import struct, tagged

STRUCTS = [
    struct(
        "CUfooParams",
        place="struct",
        items="structs CUplace count",
        security="none",
        next="none",
        u=tagged("type", {}, refuse=("*",)),
    ),
]
