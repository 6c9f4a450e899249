"""api/cuda/bad.py:6: cuFooLooks: has no parameter 'plase'; did you mean 'place'? (it has ['place'])"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooLooks", gives={"plase.type": "1"}),
]
