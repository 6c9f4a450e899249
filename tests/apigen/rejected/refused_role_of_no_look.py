"""api/cuda/bad.py:6: cuFooMap: size of a refused function is one of value, there, device, handle, handle?, not 'handle'"""

from tensor_fusion.apigen.describe import refused

FUNCTIONS = [
    refused("CUDA_ERROR_INVALID_VALUE", "why", "cuFooMap", size="handle"),
]
