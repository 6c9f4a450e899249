"""api/cuda/bad.py:6: cuFooRun: a custom function without ops sends nothing: say local"""

from tensor_fusion.apigen.describe import custom

FUNCTIONS = [
    custom("cuFooRun", ops=""),
]
