"""api/cuda/bad.py:6: cuFooWrite: say what const void * data is"""

from tensor_fusion.apigen.describe import post

FUNCTIONS = [
    post("cuFooWrite", dst="dev size"),
]
