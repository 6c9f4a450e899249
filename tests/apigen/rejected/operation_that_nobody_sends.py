"""api/cuda/bad.py:6: foo_wait: nothing in the client sends this operation"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_wait", "call"),
]
