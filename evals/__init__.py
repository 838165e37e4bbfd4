"""What FNA costs in quality: zero-shot classification, retrieval, fidelity, and their report."""
