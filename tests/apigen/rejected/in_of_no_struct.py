"""api/cuda/bad.py:6: foo_run: params is 'int', no struct of the snapshot"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", params="int: in"),
]
