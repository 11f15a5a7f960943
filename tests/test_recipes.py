"""Recipes: every file resolves, every key is checked, what is printed reads back."""

from pathlib import Path

import pytest

from medvl import recipes
from medvl.errors import ConfigError
from medvl.training.recipe import Recipe, load_recipe, merge, read_values

ALL = [
    (folder.name, name)
    for folder in Path(recipes.__file__).parent.iterdir()
    if any(folder.glob("*.yaml"))
    for name in recipes.names(folder.name)
]


def test_there_are_recipes():
    assert {name for modality, name in ALL if modality == "cxr"} >= {
        "clip",
        "mgca",
        "multi",
        "starter",
        "vit-b",
    }


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_every_recipe_resolves_and_prints(modality, name):
    recipe = recipes.resolve(name, modality=modality)
    assert recipe.modality == modality and recipe.about
    assert type(recipe).from_values(read_values(recipe.to_yaml())) == recipe
    assert recipe.differences(recipe) == []


def test_the_compared_recipes_differ_in_nothing_but_the_objective():
    multi = recipes.resolve("multi")
    for name in ("clip", "mgca"):
        keys = {line.split(":")[0].split(".")[0] for line in recipes.resolve(name).differences(multi)}
        assert keys == {"objective"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lrr=1", r"unknown key 'optimiser.lrr'.*Did you mean 'lr'"),
        ("optimizer.lr=1", r"unknown key 'optimizer'.*Did you mean 'optimiser'"),
        ("input.size=[8,8]", r"unknown key 'input.size'.*Did you mean 'size_px'"),
        ("image.lora.rnak=4", r"unknown key 'image.lora.rnak'.*Did you mean 'rank'"),
        ("image.options.width=[8]", r"unknown key 'image.options.width' of image encoder 'resnet'.*'widths'"),
        ("text.options.layer=1", r"unknown key 'text.options.layer' of text encoder 'bert'.*'layers'"),
        (
            "objective.options.prototype=9",
            r"'objective.options.prototype' of objective 'multi'.*'prototypes'",
        ),
        ("objective.name=mutli", r"unknown objective 'mutli'.*Did you mean 'multi'"),
        ("image.name=resnt", r"unknown image encoder 'resnt'.*Did you mean 'resnet'"),
        ("optimiser.lr=-1", "recipe: optimiser.lr is -1"),
        ("data.batch=1", "recipe: data.batch is 1"),
        ("loop.precision=16", "recipe: loop.precision is 16"),
        ("objective.similar_weight=1.5", "objective.similar_weight is 1.5"),
        ("schedule.epochs=.nan", "recipe: schedule.epochs is '.nan'"),
        ("optimiser.lr", "the override 'optimiser.lr' is not of the form"),
        ("=3", "the override '=3' is not of the form"),
        ("optimiser..lr=3", "the override 'optimiser..lr=3' is not of the form"),
        ("optimiser=3", "recipe: optimiser is 3"),
    ],
)
def test_a_wrong_override_names_the_nearest_right_one(override, message):
    with pytest.raises(ConfigError, match=message):
        recipes.resolve("multi", [override])


def test_overrides_are_typed_and_the_last_one_wins():
    recipe = recipes.resolve("multi", ["optimiser.lr=1e-4", "optimiser.lr=2e-4", "data.order=report"])
    assert recipe.optimiser.lr == 2e-4 and recipe.data.order == "report"
    assert recipes.resolve("multi", ["schedule.steps=7"]).schedule.steps == 7


def test_another_encoder_starts_without_the_options_of_the_old_one():
    base = recipes.resolve("multi", ["image.options.widths=[8,16]", "image.options.blocks=[1,1]"])
    assert base.with_overrides(["image.name=vit"]).image.options == {}
    assert base.with_overrides(["image.name=vit", "image.options.layers=2"]).image.options == {"layers": 2}
    assert base.with_overrides(["image.name=resnet"]).image.options == base.image.options
    starter = recipes.resolve("starter", ["image.name=resnet"])
    assert (starter.image.train, starter.image.lora) == ("full", None)


def test_a_file_may_extend_a_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: multi\nabout: ours\noptimiser: {lr: 5e-4}\n")
    recipe = recipes.resolve(file)
    assert recipe.differences(recipes.resolve("multi", ["optimiser.lr=5e-4"])) == []
    (tmp_path / "again.yaml").write_text("extends: mine\nobjective: {name: clip}\n")
    assert recipes.resolve(tmp_path / "again.yaml").optimiser.lr == 5e-4
    file.write_text("extends: mulit\n")
    with pytest.raises(ConfigError, match=r"extends 'mulit', which is not there.*Did you mean 'multi'"):
        recipes.resolve(file)
    file.write_text("extends: mine\n")
    with pytest.raises(ConfigError, match="extends 'mine', which is not there"):
        recipes.resolve(file)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"unknown cxr recipe 'mulit'.*Did you mean 'multi'"):
        recipes.resolve("mulit")
    with pytest.raises(ConfigError, match=r"no recipe for 'cxrr'.*Did you mean 'cxr'"):
        recipes.names("cxrr")
    with pytest.raises(ConfigError, match="a recipe is a mapping, got list"):
        Recipe.from_values([1])
    with pytest.raises(ConfigError, match="recipe: image: Field required"):
        load_recipe("modality: cxr")
    with pytest.raises(ConfigError, match="unknown key 'class_path'"):
        load_recipe("class_path: os.system")


def test_prompts_are_no_recipe():
    assert "prompts" not in recipes.names("cxr")


def test_merging_changes_neither_side():
    base, changes = {"a": {"b": [1]}}, {"a": {"c": [2]}}
    merged = merge(base, changes)
    merged["a"]["b"].append(9)
    merged["a"]["c"].append(9)
    assert (base, changes) == ({"a": {"b": [1]}}, {"a": {"c": [2]}})


def test_differences_name_key_and_both_values():
    multi = recipes.resolve("multi")
    other = multi.with_overrides(["optimiser.lr=0.5", "machine.devices=2"])  # where it runs does not matter
    assert other.differences(multi) == [f"optimiser.lr: 0.5 / {multi.optimiser.lr}"]
