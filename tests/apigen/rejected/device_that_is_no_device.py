"""api/cuda/bad.py:6: foo_run: device is 'int', and has to be 'CUdevice' in that role"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", device="int: device"),
]
