"""The evals under each masking strategy: `--config masking.py`."""
