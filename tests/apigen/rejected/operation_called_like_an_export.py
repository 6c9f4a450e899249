"""api/cuda/bad.py:6: cuFooRun: an operation of our own cannot have the name of an exported function"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("cuFooRun", "post"),
]
