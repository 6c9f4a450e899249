"""api/cuda/bad.py:6: cuFooWrite: dst cannot be 'dev' and optional"""

from tensor_fusion.apigen.describe import post

FUNCTIONS = [
    post("cuFooWrite", data="bytes size", dst="dev? size"),
]
