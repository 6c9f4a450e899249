"""api/cuda/bad.py:6: cuFooAsk: tpc_cuFooAsk never makes the call, by tpc_sent_cuFooAsk"""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("cuFooAsk", wrapped=True),
]
