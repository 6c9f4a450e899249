"""api/cuda/bad.py:6: foo_run: stream is 'CUstream', which means nothing to the other side; a handle is 'uint64_t: handle …'"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", stream="CUstream"),
]
