import sys

from tensor_fusion.worker.main import main

sys.exit(main())
