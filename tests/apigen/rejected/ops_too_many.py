"""api/cuda/bad.py:6: cuFooAsk: ops says 'foo_run', which tpc_cuFooAsk never sends"""

from tensor_fusion.apigen.describe import custom

FUNCTIONS = [
    custom("cuFooAsk", ops="foo_ask foo_run"),
]
