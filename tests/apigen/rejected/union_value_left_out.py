"""api/cuda/bad.py:6: CUfooParams: u says nothing of CU_FOO_EVENT: name what counts then, or refuse it"""

from tensor_fusion.apigen.describe import struct, tagged

STRUCTS = [
    struct(
        "CUfooParams",
        place="struct",
        items="structs CUfooItem count",
        security="none",
        next="none",
        u=tagged("type", {"CU_FOO_WORDS": {"u.word": ""}}),
    ),
]
