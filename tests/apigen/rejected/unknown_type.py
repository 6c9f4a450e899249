"""api/cuda/bad.py:6: foo_run: flags is 'CUflags', whose size is not known"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", flags="CUflags"),
]
