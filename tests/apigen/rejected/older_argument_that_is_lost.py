"""api/cuda/bad.py:6: cuFooSetOldParams: nothing of cuFooSetParams is given 'foo'"""

from tensor_fusion.apigen.describe import older

FUNCTIONS = [
    older("cuFooSetOldParams", "cuFooSetParams", hFoo="NULL"),
]
