"""Start pretraining: ``deepspeed train.py experiment=glm_large key=value ...``."""

import sys

from glm_dist.cli.main import main_train

sys.exit(main_train())
