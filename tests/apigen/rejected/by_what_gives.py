"""api/cuda/bad.py:6: cuFooFlags: gives what tpc_foo_shared is to give: say one of them"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooFlags", by="tpc_foo_shared(hFoo)", gives={"flags": "0"}),
]
