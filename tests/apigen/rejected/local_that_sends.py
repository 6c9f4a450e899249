"""api/cuda/bad.py:6: cuFooAsk: tpc_cuFooAsk sends 'foo_ask': say custom"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooAsk"),
]
