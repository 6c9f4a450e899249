"""api/cuda/bad.py:6: cuFooMap: 'CUDA_ERROR_INVALID' is no error of cuda; did you mean 'CUDA_ERROR_INVALID_VALUE'?"""

from tensor_fusion.apigen.describe import refused

FUNCTIONS = [
    refused("CUDA_ERROR_INVALID", "why", "cuFooMap"),
]
