"""api/cuda/bad.py:6: foo_run: data is 'CUfoo', and bytes are void or char"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", data="CUfoo: bytes"),
]
