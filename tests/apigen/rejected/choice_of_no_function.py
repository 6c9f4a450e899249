"""api/cuda/bad.py:6: foo_do: no function is called 'cuFooDestory'; did you mean 'cuFooDestroy'?"""

from tensor_fusion.apigen.describe import choice

CHOICES = [
    choice("foo_do", "CUfooParams", "type", head=1, cases={"CU_FOO_TEXT": "cuFooDestory()"}),
]
