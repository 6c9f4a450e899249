"""api/cuda/bad.py:6: cuFooWrite: 'changed size' does not fit const void * data: it cannot be written through"""

from tensor_fusion.apigen.describe import post

FUNCTIONS = [
    post("cuFooWrite", data="changed size"),
]
