"""api/cuda/bad.py:6: CUfooParams: place is a struct with a declaration: say what it stands for"""

from tensor_fusion.apigen.describe import struct, tagged

STRUCTS = [
    struct(
        "CUfooParams",
        items="structs CUfooItem count",
        security="none",
        next="none",
        u=tagged("type", {}, refuse=("*",)),
    ),
]
