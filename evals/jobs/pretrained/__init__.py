"""A real model on photographs, exact attention and others: `--config pretrained.py`."""
