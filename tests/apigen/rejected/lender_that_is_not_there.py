"""api/cuda/bad.py:6: cuFooRun: lender is 'memory', which is no parameter (it has ['hFoo', 'hStream'])"""

from tensor_fusion.apigen.describe import custom

FUNCTIONS = [
    custom("cuFooRun", ops="foo_run", lender="memory"),
]
