"""api/cuda/bad.py:6: cuFooFlags: the client has no function tpc_foo_nobody"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooFlags", by="tpc_foo_nobody(hFoo, flags)"),
]
