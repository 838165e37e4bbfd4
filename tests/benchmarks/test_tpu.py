"""The estimate of a TPU's time: on a few lines as libtpu writes them, and, with it, on peaks."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import bundles, estimate, tpu, tpu_arms, tpu_compiler
from benchmarks.models import attentions
from fna_jax import FNAConfig

# An outer loop of 3 trips around one of 16 (0x10), and one whose trips a register holds.
BUNDLES = """
= control target key start
LH: loop header
= control target key end

     0   :  { %s1 = inlined_call_operand.vmem [shape: f32[8]] } /* Start region 0 */
   0x1   :  { %v1 = vmatmul.bf16.gmra.mxu0 %v0 }
   0x2 LB: > { %s2 = sphi 0 /* Start region 1 */ }
   0x3 LB: >> { %v1 = vmatmul.f32.gmra.mxu1 %v0  ;;  %v2 = vmatmul.bf16.gmra.mxu0 %v0
              /* Start region 2 */ }
   0x4   : >> { %p1 = scmp.ge.s32.totalorder %s3, 0x10 /* loop exit test */ }
   0x5 LE: >> { (!%p1) = sbr.rel (!%p1) target = $region2 ;;  vdelay 1 }
   0x6   : > { %p2 = scmp.ge.s32.totalorder %s2, 3 /* loop exit test */ }
   0x7 LE: > { sbr.rel (!%p2) target = $region1 }
   0x8 LB: > { nop /* Start region 3 */ }
   0x9   : > { %p3 = scmp.ge.s32.totalorder %s4, %s5 /* loop exit test */ }
   0xa LE: > { sbr.rel (!%p3) target = $region3 }
   0xb   :  { sbr.rel target = $region9 }
"""

PROGRAM = """HloModule test, is_scheduled=true

%sliced (big: f32[1000,256], at: s32[]) -> f32[8,256] {
  %big = f32[1000,256]{1,0:T(8,128)} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[8,256]{1,0:T(8,128)} dynamic-slice(%big, %at, %zero), dynamic_slice_sizes={8,256}
}

%body (state: (s32[], f32[1000,256])) -> (s32[], f32[1000,256]) {
  %state = (s32[]{:T(128)}, f32[1000,256]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %all = f32[1000,256]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %some = f32[8,256]{1,0:T(8,128)S(1)} fusion(%all, %i), kind=kLoop, calls=%sliced
  %next = s32[]{:T(128)} add(%i, %i)
  ROOT %both = (s32[]{:T(128)}, f32[1000,256]{1,0:T(8,128)}) tuple(%next, %all)
}

%test (state: (s32[], f32[1000,256])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[1000,256]{1,0:T(8,128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%state.1, %limit), direction=LT
}

%twice (it: f32[1000,256]) -> f32[1000,256] {
  %it = f32[1000,256]{1,0:T(8,128)} parameter(0)
  ROOT %doubled = f32[1000,256]{1,0:T(8,128)} add(%it, %it)
}

ENTRY %main (x: f32[1000,256]) -> f32[1000,256] {
  %x = f32[1000,256]{1,0:T(8,128)} parameter(0)
  %moved = (f32[1000,256]{1,0:T(8,128)S(1)}, f32[1000,256]{1,0:T(8,128)}, u32[]) copy-start(%x)
  %start = (s32[]{:T(128)}, f32[1000,256]{1,0:T(8,128)}) tuple(%x, %x)
  %loop = (s32[]{:T(128)}, f32[1000,256]{1,0:T(8,128)}) while(%start), condition=%test, body=%body
  %y = f32[1000,256]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %sum = f32[1000,256]{1,0:T(8,128)} all-reduce(%y), to_apply=%add
  ROOT %z = f32[1000,256]{1,0:T(8,128)} fusion(%sum), kind=kLoop, calls=%twice
}
"""
ARRAY = 1000 * 256 * 4  # bytes
CHIP = estimate.Chip("none", clock=1e9, bandwidth=1e10 / 9, peak=1e12, rows=4)  # 1 GB/s at 90 %


def test_bundles_are_counted_with_their_loops():
    inner, outer = 4, 3  # bundles, one of which waits a cycle, and those around them
    found = bundles.count(BUNDLES)
    assert found.cycles == 2 + 3 * (outer + 16 * inner) + 3 + 1
    assert found.rows == 16 + 3 * 16 * (8 + 16)
    assert found.unknown == 1


def test_dumps_are_read_by_the_names_of_operations(tmp_path):
    for name in (
        "17-fusion.3-01-final_bundles.txt",
        "17-fusion.3-00-schedule-analysis_final_bundles.txt",
        "17-<late-finalization>-01-final_bundles.txt",
    ):
        (tmp_path / name).write_text(BUNDLES)
    assert bundles.read_dump(tmp_path) == {"fusion.3": bundles.count(BUNDLES)}


def test_an_operation_takes_its_bundles_rows_or_bytes_whichever_is_longest():
    seconds = lambda cost: estimate.estimate(PROGRAM, {"some": cost, "z": cost}, CHIP).seconds
    by_bytes = (5 * 8 * 256 * 4 + 2 * ARRAY) / 1e9  # five slices, then all is read and written
    moved = ARRAY / 1e9  # beside the others, but all share one bandwidth
    assert seconds(bundles.Bundles(1, 0, 0)) == pytest.approx(
        by_bytes + moved, rel=1e-4
    )  # and a few cycles
    assert seconds(bundles.Bundles(10**7, 0, 0)) == pytest.approx(6e-2)  # six times 10⁷ cycles
    assert seconds(bundles.Bundles(1, 8 * 10**7, 0)) == pytest.approx(12e-2)  # four rows a cycle


def test_operations_guesses_and_collectives_are_told():
    found = estimate.estimate(PROGRAM, {"some": bundles.Bundles(1, 0, 1)}, CHIP)
    assert found.operations == 6
    assert found.guessed == ["some", "z"]  # a loop of unknown length, and no bundles at all
    assert found.collectives == {"all-reduce": ARRAY}


@pytest.mark.parametrize(
    "shape, hbm",
    [
        ("bf16[4,4097,16,64]{1,3,2,0:T(8,128)(2,1)}", 4 * 16 * 64 * 4224 * 2),
        ("bf16[4,4097,16,64]{1,3,2,0:T(8,128)(2,1)S(1)}", 0),  # in vector memory
        ("(f32[3]{0:T(128)}, s8[2,2]{1,0:T(8,128)S(1)}, u32[])", 128 * 4 + 4),
    ],
)
def test_arrays_fill_whole_tiles(shape, hbm):
    assert estimate.hbm_bytes(shape) == hbm


def test_rows_are_made_once_and_stay(rows_of, monkeypatch, tmp_path):
    arms = ("exact", "FNA, q sampled")
    part = dict(chips=("v5e",), tokens=(17,), landmarks=4, dtype="bfloat16", arms=arms)
    towers = dict(models={"clip-vit-l-14": (28,)}, arms=("exact", "centroid"))
    monkeypatch.setattr(tpu, "PARTS", {"towers": towers, "layers": part})
    before = tmp_path / "before.csv"
    before.write_text(",".join(tpu._KEY) + ",estimate_us\nexact,v5e,17,4,4,bfloat16,7.5\n")
    monkeypatch.setattr(tpu, "BEFORE", before)
    compiled, tower = [], (lambda x: x, (jax.ShapeDtypeStruct((2,), jnp.bfloat16),))
    arms_of_tower = lambda *_, **options: {"exact": tower, "centroid": tower}
    monkeypatch.setattr(tpu_arms, "tower_arms", arms_of_tower)

    def compile_for(chip, function, specs, split=None):
        compiled.append(jax.eval_shape(function, *specs).dtype)
        return dict(compiles="yes", estimate_us=float(len(compiled)), compile_s=0.5)

    monkeypatch.setattr(tpu_compiler, "compile_for", compile_for)
    estimates = lambda rows: {row["arm"]: row["estimate_us"] for row in rows}
    assert estimates(rows_of(tpu, "--match", "FNA", plot=False)) == {"FNA, q sampled": "1.0"}
    rows = rows_of(tpu, "--resume", plot=False)
    of_towers = ["clip-vit-l-14, 28 px: exact", "clip-vit-l-14, 28 px: centroid"]
    # In order of the parts. Towers of 2 and 4 blocks take 2 and 3, and 4 and 5: one of 24, 10 more.
    expected = dict(zip([*of_towers, *arms], ["13.0", "15.0", "6.0", "1.0"]))
    assert estimates(rows) == expected
    assert [row["compiled_blocks"] for row in rows] == ["2 and 4", "2 and 4", "", ""]
    assert [row["before_us"] for row in rows] == ["", "", "7.5", ""]
    again = rows_of(tpu, "--parts", "layers", "--match", "exact", plot=False)
    assert estimates(again) == expected | {"exact": "7.0"}
    assert set(compiled) == {jnp.dtype("bfloat16")}


def test_a_name_that_no_arm_has_is_an_error(tmp_path):
    output = tmp_path / "rows.csv"
    with pytest.raises(
        SystemExit, match=r"no arm has 'splat' in its name; there are exact; .*near"
    ):
        tpu.main(["--parts", "layers", "--match", "splat", "--output", str(output)])
    assert not output.exists()


@pytest.mark.accelerator
@pytest.mark.parametrize("what", ["product", "scaling"])
def test_the_estimate_is_near_the_peaks(what):
    chip = estimate.CHIPS["v5e"]
    square = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16)
    wide = jax.ShapeDtypeStruct((2**28,), jnp.float32)
    function, specs, peak = {
        "product": (jnp.matmul, (square, square), 2 * 8192**3 / chip.peak),
        # Read and written, at the 90 % of the bandwidth that the estimate grants.
        "scaling": (lambda x: 2 * x, (wide,), 2 * 2**30 / (0.9 * chip.bandwidth)),
    }[what]
    row = tpu_compiler.compile_for("v5e", function, specs)
    assert row["compiles"] == "yes" and row["guessed"] == 0
    assert 1e-6 * row["estimate_us"] == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("arm", ["exact", "FNA", "centroid, all blocks"])
@pytest.mark.accelerator
def test_a_tower_is_on_the_line_through_those_of_fewer_blocks(arm):
    def of_depth(depth):
        options = dict(batch=1, landmarks=16, dtype="bfloat16", depth=depth)
        return tpu_compiler.compile_for(
            "v5e", *tpu_arms.tower_arms("dinov3-vit-s-16", 256, **options)[arm]
        )

    whole, line = of_depth(8), tpu.at_depth(8, {depth: of_depth(depth) for depth in tpu.SHORT})
    assert line["estimate_us"] == pytest.approx(whole["estimate_us"], rel=0.02)
    assert line["floor_us"] == pytest.approx(whole["floor_us"], rel=0.02)


def test_every_arm_is_there():
    names = {arm for part in tpu.PARTS.values() if "split" not in part for arm in part["arms"]}
    arms = tpu_arms.layer_arms(1025, batch=1, landmarks=4, dtype="bfloat16")
    assert names == {*arms, *attentions(FNAConfig((1,), 4), depth=2)}


@pytest.mark.accelerator
def test_arms_of_towers_and_of_split_tokens_are_traced():
    options = dict(batch=4, landmarks=64, dtype="bfloat16")
    arms = tpu_arms.tower_arms("dinov3-vit-b-16", 1024, **options, depth=2)
    arms |= tpu_arms.split_arms(4096, "v5e", **options)
    for function, specs in arms.values():
        assert jax.eval_shape(function, *specs).dtype == jnp.bfloat16
