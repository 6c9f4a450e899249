"""api/cuda/bad.py:6: cuFooSetOldParams: const CUfooParams_v1 * params does not become const CUfooItem *: it is a list"""

from tensor_fusion.apigen.describe import older

FUNCTIONS = [
    older("cuFooSetOldParams", "cuFooAddBar", phBar="NULL", hFoo="foo", items="params", count="1"),
]
