"""api/cuda/bad.py:6: cuFooGetCount: 'outstruct' does not fit int * count: that struct has no declaration"""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("cuFooGetCount", count="outstruct"),
]
