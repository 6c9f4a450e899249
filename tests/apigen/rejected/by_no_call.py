"""api/cuda/bad.py:6: cuFooFlags: by is 'tpc_foo_shared', which is no call"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooFlags", by="tpc_foo_shared"),
]
