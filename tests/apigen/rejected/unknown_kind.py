"""api/cuda/bad.py:6: foo_run: no kind of handle is called 'straem', as stream has it; did you mean 'stream'?"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", stream="uint64_t: handle straem"),
]
