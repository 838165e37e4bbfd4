"""Semantic segmentation with a linear head on frozen patch tokens."""

from evals.tasks.segmentation.task import segmentation

__all__ = ["segmentation"]
