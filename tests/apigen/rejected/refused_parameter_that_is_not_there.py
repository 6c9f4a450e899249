"""api/cuda/bad.py:6: cuFooMap: has no parameter 'foo' (it has ['out', 'hFoo', 'dev', 'size', 'hStream'])"""

from tensor_fusion.apigen.describe import refused

FUNCTIONS = [
    refused("CUDA_ERROR_INVALID_VALUE", "why", "cuFooMap", foo="value"),
]
