"""Start pretraining: ``deepspeed train.py experiment=glm_large key=value ...``."""

from glm_dist.stop_signals import StopListener

listener = StopListener()  # before the imports below, so that no stop request is lost

import sys  # noqa: E402

from glm_dist.cli.main import main_train  # noqa: E402

sys.exit(main_train(listener))
