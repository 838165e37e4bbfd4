"""How answers to questions about images are scored, each benchmark by its authors' definition."""
