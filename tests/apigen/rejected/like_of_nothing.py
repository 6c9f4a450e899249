"""api/cuda/bad.py:6: foo_again: no operation is called 'foo_rum'; did you mean 'foo_run'?"""

from tensor_fusion.apigen.describe import like

FUNCTIONS = [
    like("foo_again", "foo_rum"),
]
