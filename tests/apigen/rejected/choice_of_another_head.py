"""api/cuda/bad.py:6: foo_do: CU_FOO_EVENT: cuFooGetCount does not begin as the functions before it do"""

from tensor_fusion.apigen.describe import choice

CHOICES = [
    choice(
        "foo_do",
        "CUfooParams",
        "type",
        head=1,
        cases={"CU_FOO_TEXT": "cuFooDestroy()", "CU_FOO_EVENT": "cuFooGetCount(place)"},
    ),
]
