"""api/cuda/bad.py:6: cuFooAsk: its arguments differ from those of cuFooRun"""

from tensor_fusion.apigen.describe import per_thread

FUNCTIONS = [
    per_thread("cuFooAsk", "cuFooRun"),
]
