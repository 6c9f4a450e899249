"""api/cuda/bad.py:6: cuFooLook: hFoo of a function by hand is one of there, device, handle, handle?, uncaptured, handle or E, bits N, most N, below N, is N, version N, not 'handle or CUDA_ERROR'"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooLook", hFoo="handle or CUDA_ERROR"),
]
