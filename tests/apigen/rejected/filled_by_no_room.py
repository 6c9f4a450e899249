"""api/cuda/bad.py:6: cuFooGetCount: count is filled by 'size', which is no room"""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("cuFooGetCount", count="filled size"),
]
