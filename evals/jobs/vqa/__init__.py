"""Questions about images, answered with each attention: `--config vqa.py`."""
