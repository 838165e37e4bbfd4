"""Questions about images, answered by a LLaVA with each attention: `--config vqa.py`."""
