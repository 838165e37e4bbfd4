"""Semantic segmentation with a linear head on frozen patch tokens."""

from evals.tasks.segmentation.task import check_segmentation, segmentation

__all__ = ["check_segmentation", "segmentation"]
