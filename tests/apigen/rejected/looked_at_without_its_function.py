"""api/cuda/bad.py:6: cuFooRun: the client has no function tpc_do_cuFooRun"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooRun", hFoo="handle"),
]
