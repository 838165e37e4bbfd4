"""The figures of the page in order, each with a sentence for those who have not read the paper."""

import dataclasses
import io

from matplotlib.figure import Figure

from evals.jobs.analysis import figures


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure with what a reader needs.

    Attributes:
      name: of the PNG file, without ending.
      heading: what it is of.
      look_for: one sentence that says what to look for.
      alt: what it shows, for those who do not see it.
      figure: the drawing.
    """

    name: str
    heading: str
    look_for: str
    alt: str
    figure: Figure

    def png(self) -> bytes:
        """The file's content."""
        content = io.BytesIO()
        self.figure.savefig(content, format="png", dpi=120)
        return content.getvalue()


def draw(numbers, examples, num_prefix, patch_size) -> list[Picture]:
    """All figures of an analysis.

    Args:
      numbers: of `results.summarize`.
      examples: as in `figures`.
      num_prefix: tokens in front of the patches.
      patch_size: pixels.
    """
    block, first_block = numbers["block"], numbers["first_block"]
    grid = (num_prefix, patch_size)
    reader = "class token" if numbers["has_class_token"] else "average query"
    return [
        Picture(
            "norm_per_block",
            "How large the patches are, block by block",
            "Look for a block where the maximum leaves the median behind by a factor of ten or "
            "more: there a few patches have become massive.",
            "Curves against the block: median and 99 % of an image's patches, averaged over "
            "images, and the maximum of all.",
            figures.curves(numbers["norms"], "norm of a patch"),
        ),
        Picture(
            "norm_maps",
            "Where the large patches are",
            "Look for single bright squares on a dark map, which would be massive tokens; "
            "brightness that follows the picture is ordinary (logarithmic, the darkest and the "
            "brightest norm above each column).",
            "Images, each beside maps of the norms of its patches in front of several blocks.",
            figures.norm_maps(numbers["blocks"], examples, *grid),
        ),
        Picture(
            "detected_tokens",
            "Which tokens the detectors find",
            "Massive tokens are few and mostly on empty background, and squares (a norm far above "
            f"all others) and crosses (more than 0.3 of what the {reader} gives itself) should "
            "then fall together; circles are artifacts, which take over when stronger sinks are "
            "masked.",
            "Images with marks on the patches found massive by norm, massive by attention, or "
            "artifacts.",
            figures.detected_tokens(examples, *grid),
        ),
        Picture(
            "attention",
            "Who reads whom",
            "Each row says where the attention of a group's tokens goes, 1 in all; look for a "
            "column that is dark in every row, for that group is a sink.",
            "One table per block: the share of attention from each group of tokens to each group.",
            figures.grouped_attention(numbers),
        ),
        Picture(
            "suppression",
            "Who holds whom down",
            "Blue, negative, says that reading a token of the column shrinks a token of the row: "
            "massive tokens and artifacts are expected to do that to each other, normal tokens "
            "only to themselves (last column; the others are between two different tokens).",
            "One table per block: the mean suppression between groups of tokens.",
            figures.grouped_suppression(numbers),
        ),
        Picture(
            "promoted",
            "Which sinks step forward when stronger ones are masked",
            "Each row masks one sink more (grey); look for cells that turn red on the way down, "
            f"tokens that draw more than the {reader} gives itself (1, white) only once the "
            "stronger ones are gone.",
            "One map per image: attention to each ranked sink, by the number of sinks masked.",
            figures.promoted_sinks(examples),
        ),
        Picture(
            "growth",
            "Growth with attention switched off",
            f"If patches grow as large or larger without attention from block {first_block} on "
            "(grey line), it is the MLPs that make them grow, and attention holds them back.",
            "Two curves against the block: the largest norm with and without attention.",
            figures.curves(numbers["largest_norm"], "largest norm of an image", mark=first_block),
        ),
        Picture(
            "received",
            f"What all tokens read, and what the {reader} reads",
            f"If the dots, one per patch, rise together in block {block}, what the {reader} reads "
            "is what everyone reads; massive tokens and artifacts belong to the upper right.",
            "Scatter plot of the attention that patches receive against the class-token proxy.",
            figures.attention_against_proxy(examples, num_prefix, reader),
        ),
        Picture(
            "landmarks",
            "Where the landmarks of Fast Nyström Attention lie",
            "These few patches stand in for all others; look for a choice that covers the "
            "different parts of the picture"
            + (" (the tokens in front of the patches are landmarks, too)." if num_prefix else "."),
            "Images with dots on the patches that are landmarks.",
            figures.landmark_maps(examples),
        ),
        Picture(
            "clusters",
            "Which patches the means of centroid attention stand for",
            "All patches between two lines are read as one, their mean; look for borders that "
            "follow those of things, however far apart their parts lie, and for the details that "
            "the mean colours on the right lose, for they tell what one cluster should have been "
            "two for.",
            "Images with lines between their clusters of patches, each beside the clusters filled "
            "with their mean colours.",
            figures.cluster_maps(examples, patch_size),
        ),
    ]
