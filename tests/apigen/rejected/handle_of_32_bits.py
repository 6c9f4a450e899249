"""api/cuda/bad.py:6: foo_run: foo is 'unsigned int', and has to be 'uint64_t' in that role"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", foo="unsigned int: handle foo"),
]
