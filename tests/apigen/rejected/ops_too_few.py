"""api/cuda/bad.py:6: cuFooRun: ops leaves out 'foo_ask', which tpc_cuFooRun sends"""

from tensor_fusion.apigen.describe import custom

FUNCTIONS = [
    custom("cuFooRun", ops="foo_run"),
]
