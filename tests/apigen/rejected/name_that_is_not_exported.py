"""api/cuda/bad.py:6: cuFooRum: the driver exports no such name; did you mean 'cuFooRun'?"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooRum"),
]
