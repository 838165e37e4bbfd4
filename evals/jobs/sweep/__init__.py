"""A grid of settings, quality against speed: `--config sweep.py`."""
