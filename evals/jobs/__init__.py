"""The jobs of `main.py`: one folder or file each, with its report, and what they share."""
