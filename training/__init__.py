"""Training from scratch: the small model of the embedded demo."""
