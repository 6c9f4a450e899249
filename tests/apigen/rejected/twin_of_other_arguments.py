"""api/cuda/bad.py:6: cuFooAsk: its arguments differ from those of cuFooRun"""

from tensor_fusion.apigen.describe import twin

FUNCTIONS = [
    twin("cuFooAsk", "cuFooRun"),
]
