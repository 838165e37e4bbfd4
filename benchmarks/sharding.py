"""What FNA of one very long sequence costs on many devices, counted, not measured.

    python -m benchmarks.sharding [--tokens 1048576]

For one layer and one image whose tokens are split over a mesh axis (`fna_jax.sharded`), per device:
multiply-adds, gigabytes of query, key, value and output, and bytes that its collectives give it.
"""

import argparse

from benchmarks.rows import write_rows
from evals.running.workdir import ROOT

HEADS, HEAD_DIM = 16, 64  # ViT-L
ITEMSIZE = 2  # bfloat16


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharding")
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--landmarks", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 256])
    parser.add_argument("--output", default=str(ROOT / "results" / "sharding.csv"))
    arguments = parser.parse_args(argv)
    rows = [
        count(arguments.tokens, num_landmarks, num_devices)
        for num_landmarks in arguments.landmarks
        for num_devices in arguments.devices
    ]
    print(write_rows(arguments.output, rows))


def count(num_tokens, num_landmarks, num_devices) -> dict:
    """One row; landmarks are chosen on the queries averaged over heads."""
    n, s, d, h = -(-num_tokens // num_devices), num_landmarks, HEAD_DIM, HEADS
    exact = 2 * n * num_tokens * d * h
    fna = 4 * n * s * d * h + 2 * s**2 * d * h + 24 * s**3 * h + n * s * d
    sent = communicated_bytes(s, num_devices, features=d, itemsize=ITEMSIZE)
    return {
        "tokens": num_tokens,
        "landmarks": num_landmarks,
        "devices": num_devices,
        "exact_gmacs": round(exact / 1e9, 1),
        "fna_gmacs": round(fna / 1e9, 1),
        "qkvo_gb": round(4 * n * h * d * ITEMSIZE / 1e9, 3),
        "communicated_mb": round(sum(sent.values()) / 1e6, 2) if num_devices > 1 else 0,
        "messages": s + 5 if num_devices > 1 else 0,
    }


def communicated_bytes(
    num_landmarks, num_devices, *, features, itemsize, heads=HEADS, head_dim=HEAD_DIM
) -> dict:
    """Bytes that the collectives of one layer give one device, for one image without grouped heads.

    It does not depend on the tokens, but for the messages of the guaranteed ones, of which a device
    sends no more than it has or than there are landmarks; here the latter.
    """
    s = num_landmarks
    return {
        "sampling": s * num_devices * (2 + features) * 4,
        "guaranteed": s * num_devices * 4,
        "landmark queries and keys": 2 * s * heads * head_dim * itemsize,
        "landmark validity": s * 4,
        "softmax maximum and sum": 2 * s * heads * 4,
        "BV": s * heads * head_dim * 4,
    }


if __name__ == "__main__":
    main()
