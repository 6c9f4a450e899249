"""api/cuda/bad.py:6: cuFooRun: no operation is called 'foo_rum'; did you mean 'foo_run'?"""

from tensor_fusion.apigen.describe import custom

FUNCTIONS = [
    custom("cuFooRun", ops="foo_rum foo_ask"),
]
