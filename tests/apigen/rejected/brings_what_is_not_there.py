"""api/cuda/bad.py:6: foo_run: brings 'foo_ended', which is no operation and no message; did you mean 'foo_run'?"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", brings="foo_ended", stream="uint64_t: handle stream"),
]
