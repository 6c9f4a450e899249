"""The structs of the small API: every role that a field can have."""

from tensor_fusion.apigen.describe import struct, tagged

STRUCTS = [
    struct("CUplace", id="device if type == 1"),
    struct("CUpart", hidden="token or CUDA_ERROR_INVALID_VALUE if type == 1"),
    struct("CUfooItem", dst="dev width * height + 16", pad="none"),
    struct("CUfooParams", place="struct", items="structs CUfooItem count", reserved="zero", security="hand", next="null",
           u=tagged("type", {"CU_FOO_WORDS": {"u.word": ""}, "CU_FOO_EVENT": {"u.other.foo": "handle? foo"}}, refuse=("*",))),
]  # fmt: skip
