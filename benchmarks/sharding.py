"""What FNA and centroid attention of one long sequence cost on many devices: counted, not measured.

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
    """One row; landmarks are chosen, and clusters made, on states averaged over heads."""
    n, s, d, h = -(-num_tokens // num_devices), num_landmarks, HEAD_DIM, HEADS
    exact = 2 * n * num_tokens * d * h
    fna = 4 * n * s * d * h + 2 * s**2 * d * h + 24 * s**3 * h + n * s * d
    centroid = 7 * n * s * d * h + 2 * s**2 * d * h + 2 * n * s * d
    options = dict(features=d, itemsize=ITEMSIZE)
    megabytes = lambda name: sum(communicated_bytes(name, s, num_devices, **options).values()) / 1e6
    return {
        "tokens": num_tokens,
        "landmarks": num_landmarks,
        "devices": num_devices,
        "exact_gmacs": round(exact / 1e9, 1),
        "fna_gmacs": round(fna / 1e9, 1),
        "centroid_gmacs": round(centroid / 1e9, 1),
        "qkvo_gb": round(4 * n * h * d * ITEMSIZE / 1e9, 3),
        "communicated_mb": round(megabytes("nystrom"), 2) if num_devices > 1 else 0,
        "messages": s + 5 if num_devices > 1 else 0,
        "centroid_mb": round(megabytes("centroid"), 2) if num_devices > 1 else 0,
        "centroid_messages": s + 6 if num_devices > 1 else 0,
    }


def communicated_bytes(
    approximation,
    num_landmarks,
    num_devices,
    *,
    features,
    itemsize,
    heads=HEADS,
    head_dim=HEAD_DIM,
    lloyd_steps=0,
) -> dict:
    """Bytes that the collectives of one layer give one device, for one image without grouped heads.

    It does not depend on the tokens, but for the messages of the guaranteed ones, of which a device
    sends no more than it has or than there are landmarks; here the latter.

    Args:
      approximation: "nystrom", or "centroid" with the clusters of nearest landmarks.
      num_landmarks, num_devices, heads, head_dim: of the layer.
      features: channels of what landmarks and clusters are chosen on.
      itemsize: bytes of a number of query, key and value.
      lloyd_steps: that refine the clusters.
    """
    s, states = num_landmarks, num_landmarks * heads * head_dim  # of all landmarks, in one array
    sampling = {
        "sampling": s * num_devices * (2 + features) * 4,
        "guaranteed": s * num_devices * 4,
        "landmark validity": s * 4,
    }
    exact = {"softmax maximum and sum": 2 * s * heads * 4, "exact attention": states * 4}
    if approximation == "nystrom":
        return sampling | exact | {"landmark queries and keys": 2 * states * itemsize}
    return (sampling | exact) | {
        "landmark features": s * features * 4,
        "Lloyd steps": lloyd_steps * s * (features + 1) * 4,
        "sums of queries, keys and values": 3 * states * 4,
        "masses": s * 4,
    }


if __name__ == "__main__":
    main()
