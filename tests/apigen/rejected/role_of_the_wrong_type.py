"""api/cuda/bad.py:6: cuFooGetCount: 'handle stream' does not fit CUfoo hFoo: it is no CUstream"""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("cuFooGetCount", hFoo="handle stream"),
]
