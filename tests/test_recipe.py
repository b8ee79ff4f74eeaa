"""Recipes as objects and as YAML."""

from __future__ import annotations

import json
import string
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from onnxcomp.contract import Override
from onnxcomp.errors import InputError, RecipeError
from onnxcomp.recipe import Recipe, RecipePass, parse_shape, with_values
from onnxcomp.recipe_yaml import STAMP, from_yaml, load_recipe, to_yaml
from onnxcomp.spec import PassSpec

FULL = """\
passes:
  - fold
  - tucker2:
      options: {rank: vbmf, energy: 1e-1}
      layers:
        "layer1/*": {ranks: 32x64}
        /stem/conv: null
        ConvTranspose:
  - int8(calibration=entropy)
data: calibration.npz
eval: test.npz
target: ort-arm
objective: size
max_drop: 0.5
min_sqnr: 20
exclude: ["*/head/*", 12]
seed: 7
threads: 2
preprocess: {size: 224, mean: [0.485, 0.456, 0.406], order: rgb}
shapes: {input: 1x3x32x32, mask: [1, 8]}
require_data: true
"""


def test_a_full_recipe() -> None:
    assert from_yaml(FULL) == Recipe(
        passes=(
            RecipePass(PassSpec("fold")),
            RecipePass(
                PassSpec("tucker2", {"rank": "vbmf", "energy": 0.1}),
                (
                    Override("layer1/*", {"ranks": "32x64"}),
                    Override("/stem/conv", None),
                    Override("ConvTranspose", None),
                ),
            ),
            RecipePass(PassSpec("int8", {"calibration": "entropy"})),
        ),
        data="calibration.npz",
        eval="test.npz",
        target="ort-arm",
        objective="size",
        max_drop=0.5,
        min_sqnr=20.0,
        exclude=("*/head/*", "12"),
        seed=7,
        threads=2,
        preprocess="size=224,mean=0.485:0.456:0.406,order=rgb",
        shapes={"input": (1, 3, 32, 32), "mask": (1, 8)},
        require_data=True,
    )


def test_scalars_follow_yaml_1_2() -> None:
    recipe = from_yaml(
        "passes:\n- sparsity: {options: {pattern: 2:4, on: off, big: 1e3, text: '1e3', code: 007, none: ~}}\n"
    )
    assert recipe.passes[0].spec.options == {
        "pattern": "2:4",
        "on": "off",
        "big": 1000.0,
        "text": "1e3",
        "code": "007",
        "none": "none",
    }


def test_an_empty_body_is_a_pass_without_options() -> None:
    assert from_yaml("passes:\n- fold:\n- int8: {}\n").passes == (
        RecipePass(PassSpec("fold")),
        RecipePass(PassSpec("int8")),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe: the file is empty; it needs at least 'passes:'"),
        ("- fold", "recipe, line 1: the recipe: expected 'key: value' pairs"),
        (
            "passes: [fold]\nobjectiv: size\n",
            "recipe, line 2: unknown key 'objectiv' in the recipe; did you mean 'objective'?",
        ),
        ("passes: fold\n", "recipe, line 1: passes: expected a list ('- item' lines)"),
        ("passes:\n- fold\npasses:\n- int8\n", "recipe, line 3: the key 'passes' is given twice in the recipe"),
        ("passes:\n- fold(\n", "recipe, line 2: expected an option name, found the end"),
        ("passes:\n- int8: {option: {}}\n", "recipe, line 2: unknown key 'option' in int8; did you mean 'options'?"),
        ("passes:\n- {fold: , int8: }\n", "recipe, line 2: an entry of 'passes' is a spec such as"),
        ("passes:\n- int8:\n    options: {bits: [8]}\n", "recipe, line 3: bits: expected one value"),
        ("passes:\n- 'a b': {}\n", "recipe, line 2: 'a b' cannot be the name of a pass"),
        ("seed: many\n", "recipe, line 1: seed: 'many' is not an integer in [0, 4294967295]"),
        ("seed: -1\n", "recipe, line 1: seed: -1 is not an integer in"),
        ("objective: speed\n", "recipe, line 1: objective: 'speed' is not one of latency, size, macs"),
        ("max_drop: 150\n", "recipe, line 1: max_drop: 150 is not a number in [0, 100] or none"),
        ("data: null\ntarget: null\n", "recipe, line 2: target: none is not text"),
        ("shapes: {x: 1xN}\n", "recipe, line 1: shapes, x: '1xN' is not a shape such as 1x3x224x224"),
        ("exclude: [[a]]\n", "recipe, line 1: exclude: expected one value"),
        ("passes: [fold\nseed: 1", "recipe, line 2: not valid YAML: "),
        ("a: \x01", "recipe: not valid YAML: "),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_yaml(text)
    assert str(caught.value).startswith(message)


def test_passes_and_overrides_are_checked_when_built() -> None:
    good = from_yaml("passes:\n- tucker2: {options: {rank: vbmf}, layers: {conv1: {energy: 0.5}, conv2: null}}\n")
    (built,) = good.build()
    assert str(good.resolved().passes[0].spec) == "tucker2(rank=vbmf)"
    assert built.name == "tucker2"
    for body, words in (
        ("tuker2: {}", "recipe, line 2: there is no pass 'tuker2'; did you mean 'tucker2'?"),
        ("tucker2: {options: {rnk: 1}}", "recipe, line 2: pass 'tucker2' has no option 'rnk'; did you mean 'rank'?"),
        ("tucker2: {layers: {conv1: {energy: 2}}}", "recipe, line 2: tucker2.energy: 2 is not a number in (0, 1]"),
    ):
        with pytest.raises(RecipeError) as caught:
            from_yaml(f"passes:\n- {body}\n").build()
        assert str(caught.value).startswith(words)


def test_resolving_drops_what_is_the_default() -> None:
    recipe = from_yaml("passes: ['tucker2(relu=false, fit=auto, keep=0.5)']")
    assert str(recipe.resolved().passes[0].spec) == "tucker2(keep=0.5)"


def test_choices_replay_all_or_none() -> None:
    recipe = from_yaml("passes:\n- fold: {choices: {}}\n- tucker2: {choices: {conv1: {ranks: 8x8}}}\n")
    assert recipe.replay == ({}, {"conv1": {"ranks": "8x8"}})
    assert from_yaml("passes: [fold]").replay is None
    with pytest.raises(RecipeError, match="'int8' has no 'choices' but another pass has"):
        _ = from_yaml("passes:\n- fold: {choices: {}}\n- int8\n").replay


def test_a_json_report_is_a_recipe() -> None:
    text = '{"schema": "onnxcomp.report/1", "recipe": {"passes": [{"fold": {"choices": {}}}], "seed": 3}, "steps": []}'
    assert from_yaml(text) == Recipe(passes=(RecipePass(PassSpec("fold"), (), {}),), seed=3)


def test_flags_go_over_the_recipe() -> None:
    recipe = with_values(Recipe(seed=3, target="coreml"), {"seed": 5, "exclude": ("a",)})
    assert (recipe.seed, recipe.target, recipe.exclude) == (5, "coreml", ("a",))
    with pytest.raises(InputError, match="--objective: 'fast' is not one of latency, size, macs"):
        with_values(Recipe(), {"objective": "fast"})
    with pytest.raises(InputError, match=r"--max-drop: -1.0 is not a number in \[0, 100\]"):
        with_values(Recipe(), {"max_drop": -1.0})


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("passes: [fold]\n")
    assert load_recipe(path).passes == (RecipePass(PassSpec("fold")),)
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*: No such file or directory"):
        load_recipe(tmp_path / "missing.yaml")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="it is not UTF-8 text"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        (None, "carries no recipe: it was not written by onnxcomp"),
        ("{", "is damaged: "),
        ('{"passes": ["fold"]}', "is damaged: 'choices'"),
        ('{"passes": ["fold"], "choices": []}', "is damaged: zip"),
        ("[]", "is damaged: "),
        ('{"passes": ["fold"], "choices": [{}], "what": 1}', "unknown key 'what'"),
    ],
)
def test_models_without_a_sound_recipe(tmp_path: Path, stamp: str | None, message: str) -> None:
    model = parser.parse_model('<ir_version: 9, opset_import: ["": 17]> g (float[1] x) => (float[1] y) {y = Relu(x)}')
    if stamp is not None:
        model.metadata_props.add(key=STAMP, value=stamp)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)


def test_the_recipe_of_a_model(tmp_path: Path) -> None:
    model = parser.parse_model('<ir_version: 9, opset_import: ["": 17]> g (float[1] x) => (float[1] y) {y = Relu(x)}')
    stamp = {"passes": ["fold", "tucker2(keep=0.5)"], "choices": [{}, {"c": {"ranks": "2x2"}}], "seed": 4}
    model.metadata_props.add(key=STAMP, value=json.dumps(stamp))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    recipe = load_recipe(path)
    assert (recipe.seed, recipe.replay) == (4, ({}, {"c": {"ranks": "2x2"}}))
    assert str(recipe.passes[1].spec) == "tucker2(keep=0.5)"


def test_shapes() -> None:
    assert parse_shape("1x3x224x224") == (1, 3, 224, 224)
    for text in ("", "1x", "0x3", "1x-3", "1,3", "1x3.5", "²"):
        with pytest.raises(ValueError, match="is not a shape"):
            parse_shape(text)


NAMES = st.text(string.ascii_letters, min_size=1, max_size=6)
TEXT = st.text(string.printable, max_size=8) | st.sampled_from(
    ["null", "~", "", "true", "1e3", "2:4", "#a", "- b", "é\u2028"]
)
VALUES = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
OPTIONS = st.dictionaries(NAMES, VALUES, max_size=3)
ENTRIES = st.builds(
    RecipePass,
    st.builds(PassSpec, NAMES, OPTIONS),
    st.lists(st.builds(Override, TEXT, st.none() | OPTIONS), max_size=3, unique_by=lambda o: o.match).map(tuple),
    st.none() | st.dictionaries(TEXT, OPTIONS, max_size=2),
)
RECIPES = st.builds(
    Recipe,
    passes=st.lists(ENTRIES, max_size=3).map(tuple),
    data=st.none() | TEXT.filter(bool),
    target=TEXT,
    objective=st.sampled_from(["latency", "size", "macs"]),
    max_drop=st.none() | st.floats(0, 100),
    min_sqnr=st.none() | st.floats(-50, 200),
    exclude=st.lists(TEXT, max_size=2).map(tuple),
    seed=st.integers(0, 2**32 - 1),
    shapes=st.dictionaries(TEXT, st.lists(st.integers(1, 999), min_size=1, max_size=4).map(tuple), max_size=2),
    require_data=st.booleans(),
)


@settings(max_examples=60)
@given(RECIPES)
def test_recipes_survive_yaml(recipe: Recipe) -> None:
    assert from_yaml(to_yaml(recipe)) == recipe
