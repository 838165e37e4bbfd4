"""Attention's part of reading a prompt, and the cache's of writing behind it, counted.

    python -m benchmarks.language_cost [--tokens 1000 2928 10000 30000]

For the language models of LLaVAs, in bfloat16; nothing is run.
"""

from benchmarks.model_tables import language_cost as as_markdown
from benchmarks.model_tables import language_prefill
from benchmarks.rows import benchmark_parser, write_rows
from evals.jobs.arms import blocks_of
from evals.jobs.language_cost import (
    language_cost,
    with_dropping,
    with_landmarks,
    with_prefill,
)
from models.image_tokens import ImageDropping
from models.prefill import CentroidPrefill, NystromPrefill
from models.registry import published

MODELS = (
    "llava-onevision-qwen2-0.5b",
    "llava-1.6-mistral-7b",
    "llava-1.6-vicuna-7b",
    "llava-1.6-vicuna-13b",
)
TOKENS = (1000, 2928, 10000, 30000)
LANDMARKS, SHARE = 256, 0.5  # of the cache, or of FNA in prefill, in half of the blocks
RUN = 64  # tokens, of causal centroid attention in half of the blocks
DROPPING = ImageDropping(50, "attention", block=1)


def main(argv=None):
    parser = benchmark_parser("language_cost")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="of a prompt")
    arguments = parser.parse_args(argv)
    rows = [count(name, tokens) for name in MODELS for tokens in arguments.tokens]
    write_rows(arguments.output, rows)
    print(as_markdown(rows), language_prefill(rows), sep="\n\n")


def count(name, num_tokens) -> dict:
    """The row of a model and a number of tokens."""
    config, landmarks = published(name)[1].decoder, min(LANDMARKS, num_tokens)
    cost, layers = language_cost(config, num_tokens), blocks_of("second half", config.depth)
    fewer = with_landmarks(cost, num_tokens, landmarks, SHARE)
    arms = {
        "fna": with_prefill(config, num_tokens, NystromPrefill(layers, landmarks)),
        "runs": with_prefill(config, num_tokens, CentroidPrefill(layers, RUN)),
        "dropping": with_dropping(config, num_tokens, DROPPING),
    }
    return {
        "model": name,
        "tokens": num_tokens,
        "prefill_tera_multiply_adds": round(1e-12 * cost.prefill, 3),
        "attention_percent": round(100 * cost.attention_share, 2),
        "most_prefill_speedup": round(cost.most_speedup(SHARE), 3),
        "weights_gb": round(1e-9 * cost.weight_bytes, 3),
        "cache_gb": round(1e-9 * cost.cache_bytes, 4),
        "cache_percent": round(100 * cost.cache_share, 2),
        "landmark_cache_gb": round(1e-9 * fewer.cache_bytes, 4),
        "times_fewer_bytes": round(cost.read_bytes / fewer.read_bytes, 3),
        **{f"{name}_prefill_speedup": round(cost.prefill / arms[name].prefill, 3) for name in arms},
        "dropping_cache_gb": round(1e-9 * arms["dropping"].cache_bytes, 4),
        "dropping_times_fewer_bytes": round(cost.read_bytes / arms["dropping"].read_bytes, 3),
    }


if __name__ == "__main__":
    main()
