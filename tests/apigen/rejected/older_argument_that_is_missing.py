"""api/cuda/bad.py:6: cuFooSetOldParams: has no 'hFoo': say what cuFooSetParams is given"""

from tensor_fusion.apigen.describe import older

FUNCTIONS = [
    older("cuFooSetOldParams", "cuFooSetParams"),
]
