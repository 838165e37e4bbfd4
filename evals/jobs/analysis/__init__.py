"""Massive tokens, artifacts and suppression of any model, as one page of figures."""
