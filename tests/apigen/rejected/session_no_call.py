"""api/cuda/bad.py:6: foo_place: session is 'by hand', which is none of ['driver', 'hand'], and no call"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_place", "post", session="by hand", foo="uint64_t: handle foo"),
]
