"""Exact attention and FNA side by side: `--config eval.py`, `classify.py` and `segment.py`."""
