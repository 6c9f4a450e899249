"""api/cuda/bad.py:6: cuFooSetOldParams: CUfoo foo does not become int"""

from tensor_fusion.apigen.describe import older

FUNCTIONS = [
    older("cuFooSetOldParams", "cuFooGetName", name="NULL", length="foo", hFoo="NULL"),
]
