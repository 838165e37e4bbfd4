"""What ours is compared with, in PyTorch. A library that is missing is left out, and said so, once.

Every function here takes arrays of JAX or numpy and gives arms: functions without arguments, by
name, that return a torch tensor when their work is done. They compute on the CPU when JAX does, and
on CUDA when JAX computes on a GPU, where XLA_PYTHON_CLIENT_PREALLOCATE=false leaves them memory. On
a CPU let nothing else run: PyTorch's threads wait for each other by spinning, and where they share
their cores with another program it gets slower by factors.

Shape letters: B batch, N tokens, S landmarks, H heads, D head dimension, C width.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import sys
import warnings

import jax
import numpy as np

# Seconds. PyTorch's OpenMP threads spin for about 10 ms when they have nothing more to do, and slow
# down what runs then: measured, ours of 12 ms by 15 to 40 %.
SETTLE = 0.02
PACKAGES = ("torch", "torch-quickfps", "nystrom-attention", "linformer", "performer-pytorch")


@functools.cache
def library(package):
    """The module of a package, or None, said so on stderr, once."""
    try:
        with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):  # performer's
            return importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        print(f"{package} is left out: {error}", file=sys.stderr)
        return None


@functools.cache
def device():
    """PyTorch's name of the kind of device that JAX uses, or None, said so on stderr, once."""
    if (torch := library("torch")) is None:
        return None
    name = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if name is None or (name == "cuda" and not torch.cuda.is_available()):
        print(f"torch is left out: it sees no {jax.default_backend()}", file=sys.stderr)
        return None
    return name


def versions(*packages) -> dict[str, str]:
    """Of those packages (by default `PACKAGES`) that are installed."""
    found = {}
    for package in packages or PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def as_tensor(x, dtype=None):
    """An array of floats as a torch tensor on the device, in its own dtype or the one given."""
    tensor = library("torch").from_numpy(np.array(x, np.float32))
    return tensor.to(device(), getattr(library("torch"), str(dtype or x.dtype)))


def blocking(function, *arguments, calls=1):
    """An arm that calls the function so many times without gradients, and waits for the device."""
    torch = library("torch")

    def run():
        with torch.inference_mode():
            for _ in range(calls):
                out = function(*arguments)
        if device() == "cuda":
            torch.cuda.synchronize()
        return out

    return run


def attention_arms(query, key, value, inputs, indices, *, calls=1) -> dict:
    """Exact attention; FNA built on it; FNA with torch-quickfps, which is what its authors run.

    Args:
      query, key, value: `[B, N, H, D]`.
      inputs: `[B, N, C]`, which landmarks are sampled on; the first token is one.
      indices: int `[B, S]`, the landmarks where they are given.
      calls: how many one run makes.
    """
    if device() is None:
        return {}
    arm = functools.partial(blocking, calls=calls)
    states = _heads_first(query, key, value)
    num_landmarks = indices.shape[-1]
    indices = library("torch").from_numpy(np.array(indices, np.int64)).to(device())
    exact = library("torch").nn.functional.scaled_dot_product_attention
    arms = {
        "exact, torch": arm(exact, *states),
        "FNA, landmarks given, torch": arm(nystrom_attention, *states, indices),
    }
    if sample := sampler(num_landmarks):
        inputs = as_tensor(inputs)
        fna = lambda: nystrom_attention(*states, sample(inputs.float()))
        arms["FNA, input sampled, torch with quickfps"] = arm(fna)
    return arms


def sampled_arm(name, query, key, value, num_landmarks) -> dict:
    """FNA with torch-quickfps on the queries averaged over heads, the first token a landmark."""
    if (sample := sampler(num_landmarks)) is None:
        return {}
    states = _heads_first(query, key, value)
    points = lambda: states[0].float().mean(1).contiguous()
    return {name: blocking(lambda: nystrom_attention(*states, sample(points())))}


def sampler(num_landmarks):
    """torch-quickfps as a function of points `[B, N, C]` that gives indices `[B, S]`, or None."""
    if device() is None or (quickfps := library("torch-quickfps")) is None:
        return None
    return lambda points: quickfps.sample_idx(points, num_landmarks, start_idx=0)


def nystrom_attention(query, key, value, indices):
    """FNA in PyTorch: states `[B, H, N, D]`, landmarks int `[B, S]`, to `[B, H, N, D]`."""
    attend = library("torch").nn.functional.scaled_dot_product_attention
    indices = indices[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    landmark_query, landmark_key = query.gather(2, indices), key.gather(2, indices)
    scale = query.shape[-1] ** -0.5
    logits = scale * landmark_query.float() @ landmark_key.float().transpose(-1, -2)
    kernel = logits.softmax(-1)
    eye = library("torch").eye(kernel.shape[-1], device=kernel.device)
    inverse = kernel.transpose(-1, -2) / kernel.sum(-2).amax(-1)[..., None, None]
    for _ in range(6):
        product = kernel @ inverse
        inner = 15 * eye - product @ (7 * eye - product)
        inverse = 0.25 * inverse @ (13 * eye - product @ inner)
    landmark_value = inverse @ attend(landmark_query, key, value).float()
    return attend(query, landmark_key, landmark_value.to(value.dtype))


def other_arms(query, key, value, inputs, num_landmarks) -> dict:
    """Other approximations of attention, with random weights, of rank S where they have a rank.

    Linformer and Nyströmformer come as layers from `inputs` `[B, N, C]` with C = H · D, and so have
    the four projections in their time; "projections alone" says how much that is. Performer has its
    own number of random features, and no projections.
    """
    if device() is None:
        return {}
    _, num_tokens, num_heads, head_dim = query.shape
    width = num_heads * head_dim
    inputs = as_tensor(inputs, query.dtype)
    layers = {}
    if performer := library("performer-pytorch"):
        states = _heads_first(query, key, value)
        layers["Performer"] = performer.FastAttention(head_dim), states
    if linformer := library("linformer"):
        layer = linformer.LinformerSelfAttention(
            width, num_tokens, k=num_landmarks, heads=num_heads, dim_head=head_dim
        )
        layers["Linformer with projections"] = layer, (inputs,)
    if nystromformer := library("nystrom-attention"):
        layer = nystromformer.NystromAttention(
            width, head_dim, num_heads, num_landmarks=num_landmarks, residual=False
        )
        layers["Nyströmformer with projections"] = layer, (inputs,)
    if layers:
        nn = library("torch").nn
        projections = (nn.Linear(width, width, bias=False) for _ in range(4))
        layers["projections alone"] = nn.Sequential(*projections), (inputs,)
    return {
        f"{name}, torch": blocking(layer.to(device(), inputs.dtype).eval(), *arguments)
        for name, (layer, arguments) in layers.items()
    }


def _heads_first(*states):
    """Arrays `[B, N, H, D]` as tensors `[B, H, N, D]`."""
    return [as_tensor(x).transpose(1, 2).contiguous() for x in states]
