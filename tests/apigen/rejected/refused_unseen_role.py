"""api/cuda/bad.py:6: cuFooMap: is unseen, so nobody looks at size"""

from tensor_fusion.apigen.describe import refused

FUNCTIONS = [
    refused("CUDA_ERROR_INVALID_VALUE", "why", "cuFooMap", unseen=True, size="there"),
]
