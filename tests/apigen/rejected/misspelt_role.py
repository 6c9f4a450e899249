"""api/cuda/bad.py:6: foo_run: no role is called 'handel', as foo has it; did you mean 'handle'?"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", foo="uint64_t: handel foo"),
]
