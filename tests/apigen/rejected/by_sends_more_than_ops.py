"""api/cuda/bad.py:6: cuFooFlags: tpc_foo_shared sends 'foo_ask': say custom"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooFlags", by='tpc_foo_shared("cuFooFlags", hFoo, 1)'),
]
