import sys

from tensor_fusion.entry import worker

sys.exit(worker())
