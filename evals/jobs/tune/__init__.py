"""The attention for a model under an error budget: `--config tune.py`."""
