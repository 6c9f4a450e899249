"""api/cuda/bad.py:6: cuFooWrite: the length 'bytes' of dst is not made of sent values; those are ['size']"""

from tensor_fusion.apigen.describe import post

FUNCTIONS = [
    post("cuFooWrite", dst="dev bytes", data="bytes size"),
]
