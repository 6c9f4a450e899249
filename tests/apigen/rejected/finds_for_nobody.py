"""api/cuda/bad.py:6: cuFooFlags: finds 'int found' for nobody: say by, or what it gives"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooFlags", finds={"int found": "tpc_foo_found(&found)"}),
]
