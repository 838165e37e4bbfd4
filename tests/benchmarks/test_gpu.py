import argparse

import jax
import pytest

from benchmarks import gpu, layers
from benchmarks.launches import count_launches

PROGRAM = """
HloModule jit_f

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], /*index=1*/f32[4]{0}) parameter(0)
  %value = f32[4]{0} get-tuple-element(%state), index=1
  %doubled = f32[4]{0} fusion(%value), kind=kLoop, calls=%double
  ROOT %next = (s32[], f32[4]{0}) tuple(%value, %doubled)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %copied = f32[4]{0} copy(%x)
  %loop = (s32[], /*index=1*/f32[4]{0}) while(%copied), body=%body, KNOWN
  ROOT %product = f32[4]{0} custom-call(%loop), custom_call_target="__cublas$gemm"
}
"""


def test_launches_of_a_loop_count_once_a_trip():
    known = 'backend_config={"known_trip_count":{"n":"5"}}'
    assert count_launches(PROGRAM.replace("KNOWN", known)) == 1 + 5 + 1
    with pytest.raises(ValueError, match="a loop of unknown length"):
        count_launches(PROGRAM.replace("KNOWN", ""))
    with pytest.raises(ValueError, match="no HLO module"):
        count_launches("")


def test_every_arm_fits_its_shapes():
    *states, inputs, indices = layers.shapes(2, 17, 2, 8, 4, "bfloat16")
    for function in layers.functions(17, 4, 4).values():
        assert jax.eval_shape(function, *states, inputs, indices).shape == states[0].shape
    for function in layers.given_functions(17, 4).values():
        assert jax.eval_shape(function, *states, indices).shape == states[0].shape


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="a GPU is measured")
def test_what_needs_a_gpu_says_so(tmp_path):
    with pytest.raises(SystemExit, match="--measure needs a GPU, but JAX computes on"):
        gpu.main(["--measure", "--output", str(tmp_path / "gpu.csv")])
    assert not list(tmp_path.iterdir())


def test_errors_come_first_whatever_is_chosen_and_a_name_that_is_none_is_refused():
    names = lambda match: [name for name, _ in gpu.chosen_parts(asked(match))]
    asked = lambda match: argparse.Namespace(
        match=match, tokens=[1025], towers=["clip-vit-l-14:448"]
    )
    assert names("float32") == [
        "errors",
        "layers, 1,025 tokens, float32",
        "clip-vit-l-14, 448 px, float32",
    ]
    with pytest.raises(SystemExit, match=r"no part has 'fp32' in its name; there are layers"):
        names("fp32")


def test_tokens_are_squares_behind_a_class_token():
    with pytest.raises(SystemExit, match=r"squares plus one.*got 1000"):
        gpu.sizes_of(1000, "float32", None)
