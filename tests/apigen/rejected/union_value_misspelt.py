"""api/cuda/bad.py:6: CUfooParams: CUfooType has no 'CU_FOO_WORD'; did you mean 'CU_FOO_WORDS'?"""

from tensor_fusion.apigen.describe import struct, tagged

STRUCTS = [
    struct(
        "CUfooParams",
        place="struct",
        items="structs CUfooItem count",
        security="none",
        next="none",
        u=tagged("type", {"CU_FOO_WORD": {"u.word": ""}}, refuse=("*",)),
    ),
]
