"""LoRA adapters (arXiv 2106.09685) as peft saves them, merged into the weights of their model.

A linear layer's weight W `[O, I]` becomes `W + s · B A`, with A `[r, I]`, B `[O, r]`, and the scale
s = α / r, or α / √r where the adapter is rank-stabilised (arXiv 2312.03732).
"""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from convert.errors import ConversionError, show, summarise
from convert.fields import Fields
from convert.files import open_tensors
from convert.sources import read_json_object
from convert.table import Row
from convert.tensors import Tensor
from models.checkpoint import local_path

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_FACTORS = (".lora_A.weight", ".lora_B.weight")
# What transformers calls the backbone of a model with a classifier.
_BACKBONES = ("vit", "dinov2", "dinov2_with_registers")
# Of training, and of which layers were adapted, which the tensors tell.
_IRRELEVANT = """
    auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config
    exclude_modules inference_mode layers_pattern layers_to_transform loftq_config lora_dropout
    megatron_core modules_to_save peft_version qalora_group_size revision target_modules task_type
    rank_pattern
    """.split()  # noqa: SIM905
_FIXED = dict(
    peft_type="LORA",
    bias="none",
    use_dora=False,
    fan_in_fan_out=False,
    lora_bias=False,
    use_qalora=False,
    layer_replication=None,
    megatron_config=None,
    trainable_token_indices=None,
    target_parameters=None,
)
_INITS = ("True", "False", "gaussian", "eva")  # those that leave the weights of the model alone
_DEFAULTS = {
    "alpha_pattern": {},
    "init_lora_weights": True,
    "lora_alpha": 8,
    "r": 8,
    "use_rslora": False,
}


@dataclasses.dataclass(frozen=True)
class LoRA:
    """The low-rank change of one linear layer."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight in a file, [O, I]."""
        return self.b.shape[0], self.a.shape[1]

    def product(self) -> np.ndarray:
        """What is added to the weight, float32 [O, I]."""
        a, b = (np.asarray(x.read(), np.float32) for x in (self.a, self.b))
        return np.float32(self.scale) * (b @ a)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A folder that peft wrote.

    Attributes:
      folder: its place.
      layers: changes by the names of the layers.
      saved: whole tensors that take the place of the model's, or are new.
      base: the model that it was made for, as its config calls it; None where it does not.
    """

    folder: pathlib.Path
    layers: Mapping[str, LoRA]
    saved: Mapping[str, Tensor]
    base: str | None

    def __str__(self):
        ranks = sorted({str(layer.a.shape[0]) for layer in self.layers.values()}, key=int)
        whole = f", {len(self.saved)} tensors in place of the model's" if self.saved else ""
        base = f"; made for {show(self.base)}" if self.base else ""
        rank = f"LoRA of rank {', '.join(ranks)} merged into {len(self.layers)} layers"
        return f"{show(str(self.folder))}: {rank}{whole}{base}"

    def beside(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the model, with those that the adapter saved whole.

        A backbone gets the prefix that it has in a model with a classifier, if the adapter is of
        such a model.
        """
        first = {name.partition(".")[0] for name in self.layers}
        names = {name.partition(".")[0] for name in tensors}
        if len(first) == 1 and not first & names and first <= set(_BACKBONES):
            tensors = {f"{min(first)}.{name}": tensor for name, tensor in tensors.items()}
        return {**tensors, **self.saved}

    def changes(self, tables) -> dict[str, "Change"]:
        """What is added to leaves, by their dotted paths.

        Args:
          tables: of the model, whose rows say which tensors are which leaves.

        Raises:
          ConversionError: a layer that is in none of them.
        """
        problems = []
        for table in tables:
            rows: dict[str, list[Row]] = {}
            for row in table.rows:
                rows.setdefault(row.source, []).append(row)
            for prefix in ("", *(f"{name}." for name in _BACKBONES)):
                layers = {f"{prefix}{name}.weight": lora for name, lora in self.layers.items()}
                if layers.keys() <= rows.keys():
                    return {
                        row.target: Change(lora, row)
                        for source, lora in layers.items()
                        for row in rows[source]
                    }
                if not prefix:
                    problems.append([name for name in layers if name not in rows])
        fewest = min(problems, key=len)
        raise ConversionError(
            f"{show(str(self.folder))} is an adapter of another model: it changes "
            f"{summarise([show(name) for name in fewest])}, of which the model has none"
        )


@dataclasses.dataclass(frozen=True)
class Change:
    """What is added to a leaf: the part of a layer's change that the row makes of its weight."""

    lora: LoRA
    row: Row

    def __call__(self, shape) -> np.ndarray:
        """Of the leaf's shape."""
        return self.row.transform.apply(self.lora.product(), shape)


def open_adapter(folder) -> Adapter:
    """The adapter in a folder of peft's `save_pretrained`.

    Raises:
      ConversionError: files that are missing or damaged, or an adapter of another kind.
    """
    folder = local_path(folder)
    files = (folder / name for name in _WEIGHTS)
    file = next((file for file in files if file.is_file()), None)
    if file is None or not (folder / _CONFIG).is_file():
        raise ConversionError(
            f"{show(str(folder))} is no folder of an adapter of peft: expected {_CONFIG} and one "
            f"of {', '.join(_WEIGHTS)}"
        )
    try:
        layers, saved = _sorted_out(open_tensors(file))
        fields = _checked_config(read_json_object(folder / _CONFIG))
        scale = functools.partial(_scale, fields)
        loras = {name: LoRA(*pair, scale(name, pair)) for name, pair in layers.items()}
    except ConversionError as error:
        raise ConversionError(f"the adapter in {show(str(folder))}: {error}") from None
    base = fields.values.get("base_model_name_or_path")
    return Adapter(folder, loras, saved, base if isinstance(base, str) else None)


def _checked_config(values):
    fields = Fields(_CONFIG, values, _DEFAULTS)
    fields.fix(**_FIXED)
    fields.ignore(*_IRRELEVANT, *_DEFAULTS)
    if str(init := values.get("init_lora_weights", True)) not in _INITS:
        raise ConversionError(
            f"init_lora_weights {show(init)} changed the weights of the model itself; have peft "
            "convert it (path_initial_model_for_weight_conversion), or merge it with peft"
        )
    on = {name: x for name, x in values.items() if x not in (None, False) and x != {} and x != []}
    dataclasses.replace(fields, values=on).refuse_unknown()
    return fields


def _sorted_out(tensors):
    """Pairs of A and B by layer, and whole tensors by name."""
    layers, saved, problems = {}, {}, []
    for name, tensor in tensors.items():
        own = name.removeprefix(_PREFIX)
        layer = own.removesuffix(_FACTORS[0]).removesuffix(_FACTORS[1])
        if not name.startswith(_PREFIX):
            problems.append(f"{show(name)} does not begin with {_PREFIX}")
        elif layer != own:
            if len(tensor.shape) != 2:
                problems.append(f"{show(own)} is of a layer that is not linear")
            layers.setdefault(layer, {})[own.endswith(_FACTORS[1])] = tensor
        elif "lora_" in own:
            problems.append(f"{show(own)} is of another kind than plain LoRA on linear layers")
        else:
            saved[own] = tensor
    problems += [f"{show(name)} lacks A or B" for name, pair in layers.items() if len(pair) < 2]
    if problems or not layers:
        raise ConversionError(summarise(problems) if problems else "no LoRA among its tensors")
    return {name: (pair[False], pair[True]) for name, pair in layers.items()}, saved


def _scale(fields, layer, pair):
    """That of a layer; raises ConversionError for factors that do not fit each other."""
    a, b = pair
    rank = a.shape[0]
    if b.shape[1] != rank or not rank:
        raise ConversionError(f"{show(layer)} has A {list(a.shape)} and B {list(b.shape)}")
    alpha = fields.number("lora_alpha", least=-(2**20), most=2**20)
    patterns = fields.section("alpha_pattern", {})
    for pattern in patterns.values:
        if _matches(pattern, layer):
            alpha = patterns.number(pattern, least=-(2**20), most=2**20)
            break
    return alpha / (math.sqrt(rank) if fields.flag("use_rslora") else rank)


def _matches(pattern, layer):
    """Whether a key of alpha_pattern is of a layer: the end of its name, or all of it after ^."""
    if not re.fullmatch(r"\^?[\w.-]+", pattern):
        raise ConversionError(
            f"alpha_pattern {show(pattern)} is a regular expression: merge it with peft's "
            "merge_and_unload"
        )
    if pattern.startswith("^"):
        return layer == pattern[1:]
    return f".{layer}".endswith(f".{pattern}")


def change_problems(changes: Mapping[str, Change], leaves) -> list[str]:
    """Layers that are of another shape in the model, in words."""
    problems = {}
    for target, change in changes.items():
        expected = change.row.transform.source_shape(leaves[target].shape)
        if change.lora.shape != expected:
            problems[change.row.source] = (
                f"{change.row.source} is {list(expected)}, its change {list(change.lora.shape)}"
            )
    return list(problems.values())
