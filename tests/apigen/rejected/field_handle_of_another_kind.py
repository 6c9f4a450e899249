"""api/cuda/bad.py:6: CUfooParams: u.other.foo is CUfoo, no CUbar"""

from tensor_fusion.apigen.describe import struct, tagged

STRUCTS = [
    struct(
        "CUfooParams",
        place="struct",
        items="structs CUfooItem count",
        security="none",
        next="none",
        u=tagged("type", {"CU_FOO_EVENT": {"u.other.foo": "handle bar"}}, refuse=("*",)),
    ),
]
