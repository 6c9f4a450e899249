"""api/cuda/bad.py:6: cuFooGetCount: the client has no function tpc_cuFooGetCount"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooGetCount"),
]
