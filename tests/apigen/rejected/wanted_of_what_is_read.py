"""api/cuda/bad.py:6: cuFooWrite: 'wanted' does not fit const void * data: it cannot be written through"""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("cuFooWrite", dst="dev size", data="wanted"),
]
