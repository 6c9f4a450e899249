"""api/cuda/bad.py:6: cuFooSetOldParams: cuFooSetParams has no parameter 'param'; did you mean 'params'?"""

from tensor_fusion.apigen.describe import older

FUNCTIONS = [
    older("cuFooSetOldParams", "cuFooSetParams", hFoo="foo", param="NULL"),
]
