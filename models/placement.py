"""Where a model's weights go on a mesh of devices: heads and channels of the MLPs over one axis.

Shape letters: V words, W width, H heads, D head dimension.
"""

import jax
from jax.sharding import NamedSharding, PartitionSpec

# The axis that is split of leaves whose paths end so: the heads of `[W, H, D]`, the hidden channels
# of an MLP, the words of the embeddings and of the head.
_SPLIT = {
    "attention.query.kernel": 1,
    "attention.key.kernel": 1,
    "attention.value.kernel": 1,
    "attention.query.bias": 0,
    "attention.key.bias": 0,
    "attention.value.bias": 0,
    "attention.out.kernel": 0,
    "mlp.gate.kernel": 1,
    "mlp.gate.bias": 0,
    "mlp.fc1.kernel": 1,
    "mlp.fc1.bias": 0,
    "mlp.fc2.kernel": 0,
    "token_embedding.embedding": 0,
    "head.kernel": 1,
}


def split_heads(mesh: jax.sharding.Mesh, axis: str):
    """A rule for `models.load(path, sharding=…)`: heads and MLPs are split over an axis of a mesh.

    In the blocks one sum over the devices follows each attention and each MLP, and nothing else is
    exchanged. What does not divide by the axis, as few key and value heads, and what is small lies
    on every device.

    Raises:
      ValueError: an axis that the mesh does not have.
    """
    if axis not in mesh.axis_names:
        raise ValueError(f"the mesh has the axes {', '.join(mesh.axis_names)}, not {axis!r}")

    def rule(path, leaf):
        split = next((n for name, n in _SPLIT.items() if f".{path}".endswith(f".{name}")), None)
        if split is None or leaf.shape[split] % mesh.shape[axis]:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * split, axis))

    return rule
