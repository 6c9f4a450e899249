"""api/cuda/bad.py:6: foo_run: carries 'tp_foo', which is no struct of native/wire"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", carries="tp_foo", stream="uint64_t: handle stream"),
]
