"""api/cuda/bad.py:6: foo_ask: foo cannot be 'handle'; it can be value, bytes, array"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_ask", "call", out={"foo": "uint64_t: handle foo"}),
]
