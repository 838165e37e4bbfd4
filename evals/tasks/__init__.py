"""The tasks that an attention is scored in, one file or folder each; `table.py` lists them."""
