"""api/cuda/bad.py:6: foo_run: data needs nothing behind 'bytes', not 'size'"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", data="void: bytes size"),
]
