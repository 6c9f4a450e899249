"""api/cuda/bad.py:6: foo_run: an operation is a call, a post or pure, not 'posted'"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "posted"),
]
