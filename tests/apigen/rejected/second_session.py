"""api/cuda/bad.py:6: cuFooGetCount: session is 'mine', which is none of ['driver', 'hand'], and no call"""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("cuFooGetCount", session="mine"),
]
