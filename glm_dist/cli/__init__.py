"""The command line: `glm-dist <command>` and `train.py`."""
