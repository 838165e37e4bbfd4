"""What tuning tells: the attention of each block, the error, and the gain, counted and measured."""

from evals.jobs.arms import METHOD_NAMES
from evals.jobs.tables import headline, markdown_table
from fna_jax.config import config_by_block


def format_report(record, fnas, file) -> str:
    """The text to print.

    Args:
      record: what is `measured` in the file.
      fnas: the settings chosen.
      file: where they were written.
    """
    by_block = config_by_block(fnas)
    rows = [
        _row(number, block, by_block.get(number)) for number, block in enumerate(record["blocks"])
    ]
    headings = ["attention", "blocks", "S", "near field, windows", "layer errors"]
    return "\n\n".join(
        [
            headline(record),
            markdown_table(headings, _grouped(rows)),
            verdict(record),
            f"Written to {file}. Other configs take it: --config eval.py --config.fna.tuned={file}",
        ]
    )


def verdict(record) -> str:
    """What the choice costs and gains, in a few honest sentences."""
    budget, output = record["config"]["budget"], record["config"]["output"]
    tokens = f"{record['num_tokens']:,} tokens"
    if not record["num_candidates"]:
        return f"Exact attention in all blocks: at {tokens} no candidate saves arithmetic."
    if record["counted_speedup"] == 1:
        return (
            f"Exact attention in all blocks: none of {record['num_candidates']} candidates that "
            f"save arithmetic at {tokens} keeps the error of the {output} within {budget:g}."
        )
    said = [
        f"Error of the {output}: {record['error_held_out']:.4f} on "
        f"{record['num_held_out']} images held out, {record['error_deciding']:.4f} on the "
        f"{record['num_deciding']} that decided; the budget is {budget:g}."
    ]
    if record["error_held_out"] > budget:
        said.append("So it is not kept on other images: take more of them, or a smaller budget.")
    said.append(
        f"Counted at {tokens}: {record['counted_speedup']:.2f} times less arithmetic in the vision "
        f"blocks, {record['counted_attention_speedup']:.2f} times less in their attention."
    )
    said.append(_times(record["times"]))
    return " ".join(said)


def _times(times):
    if times.keys() != {"exact", "tuned"}:
        return "The tower could not be timed: out of memory? Take a smaller --config.batch_size."
    exact, tuned = times["exact"], times["tuned"]
    text = (
        f"Measured: {tuned['ms_per_image']:.2f} ms an image, exact {exact['ms_per_image']:.2f}: "
        f"{tuned['speedup']:.2f} times faster (compiling took {tuned['compile_s']:.1f} s, exact "
        f"{exact['compile_s']:.1f})."
    )
    return text if tuned["speedup"] > 1 else f"{text} On this device that does not pay."


def _row(number, block, fna):
    """Cells of one block: the attention, the block, and the rest."""
    method = METHOD_NAMES[block["method"]]
    if fna is None:
        return method, number, "", "", ""
    method += ", refined" * bool(fna.refine)
    field = "" if fna.windows is None else f"{fna.windows}, {'3 × 3' if fna.near else 'own'}"
    return method, number, str(fna.num_landmarks), field, f"{block['layer_error']:.2f}"


def _grouped(rows):
    """Rows of the table: blocks with the same attention side by side."""
    groups = {}
    for method, number, landmarks, field, error in rows:
        groups.setdefault((method, landmarks, field), []).append((str(number), error))
    return [
        [method, " ".join(n for n, _ in found), landmarks, field, " ".join(e for _, e in found)]
        for (method, landmarks, field), found in groups.items()
    ]
