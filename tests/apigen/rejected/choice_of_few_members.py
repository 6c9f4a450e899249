"""api/cuda/bad.py:6: foo_do: CU_FOO_EVENT: cuFooMove wants 2 members, not 1"""

from tensor_fusion.apigen.describe import choice

CHOICES = [
    choice("foo_do", "CUfooParams", "type", head=1, cases={"CU_FOO_EVENT": "cuFooMove(count)"}),
]
