"""api/cuda/bad.py:6: cuFooSetOldParams: target 'cuFooNone' is not a line that answers itself or an alias"""

from tensor_fusion.apigen.describe import older

FUNCTIONS = [
    older("cuFooSetOldParams", "cuFooNone"),
]
