"""``python -m glm_dist``: the same as ``glm-dist``."""

import sys

from glm_dist.cli.main import main

sys.exit(main())
