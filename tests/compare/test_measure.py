"""Metrics rank planted pictures as a person does: copies, the style, another style, and noise."""

import json
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

import velatura
from tools.drawing.paint import paint
from tools.drawing.scene import caption, random_scene
from tools.tiny_base.export import robot_scene
from velatura.cli.app import main
from velatura.compare import metrics
from velatura.compare.likeness import likeness
from velatura.compare.measure import MEANINGS, noise_pictures
from velatura.compare.metrics import Mean
from velatura.compare.picture_features import PictureEncoder
from velatura.compare.tune import kept_share
from velatura.errors import BadDataset, BadFile

COUNT = 5


def scenes(first_seed, style, subjects=None):
    drawn = [random_scene(Random(first_seed + n), styles=[style], subjects=subjects) for n in range(COUNT)]
    return [replace(scene, count=1, x=0.5, size=0.34) for scene in drawn]


@pytest.fixture(scope="module")
def painted():
    """The data, neon cats, and pictures that are like it in some ways."""
    cats = scenes(100, "neon", ["cat"])
    return {
        "data": [paint(scene) for scene in cats],
        "new": [paint(scene) for scene in scenes(200, "neon", ["cat"])],
        "style without the subject": [paint(scene) for scene in scenes(300, "neon", ["house", "boat", "key"])],
        "another style": [paint(scene) for scene in scenes(400, "blueprint", ["cat"])],
        "base": [paint(scene) for scene in scenes(500, "poster")],
        "same scenes": [paint(replace(scene, seed=scene.seed + 1)) for scene in cats],
        "noise": noise_pictures(COUNT, 64),
    }


@pytest.fixture(scope="module")
def seen(tiny, painted):
    encoder = PictureEncoder.open(tiny)
    return {name: encoder.features(pictures) for name, pictures in painted.items()}


def mean(values):
    return float(values.mean())


def test_the_style_distance_ranks_the_data_then_its_style_then_other_styles_then_noise(seen):
    distance = {name: mean(metrics.style_distance(features, seen["data"])) for name, features in seen.items()}
    assert distance["data"] < min(distance["new"], distance["style without the subject"])
    in_style = max(distance["new"], distance["style without the subject"])
    assert in_style < min(distance["another style"], distance["base"])
    assert max(distance["another style"], distance["base"]) < distance["noise"]


def test_the_style_distance_of_a_picture_from_itself_is_zero_and_at_most_one(seen):
    for features in seen.values():
        one = features.select([0])
        assert mean(metrics.style_distance(one, one)) == pytest.approx(0, abs=1e-6)
    assert mean(metrics.style_distance(seen["noise"], seen["data"])) < 1


def test_the_image_similarity_ranks_the_data_then_its_style_then_the_base(seen):
    similarity = {
        name: mean(metrics.image_similarity(features.clip, seen["data"].clip)) for name, features in seen.items()
    }
    others = ("another style", "base", "noise")
    in_style = similarity["new"], similarity["style without the subject"]
    assert similarity["data"] > max(in_style) > min(in_style) > max(similarity[name] for name in others)


def test_the_nearest_picture_of_a_copy_is_itself(seen):
    nearest = {name: metrics.nearest_similarity(features.clip, seen["data"].clip) for name, features in seen.items()}
    assert nearest["data"].tolist() == pytest.approx([1.0] * COUNT, abs=1e-5)
    assert max(mean(values) for name, values in nearest.items() if name not in {"data", "same scenes"}) < 0.98


def test_the_change_ranks_the_same_picture_then_the_same_scene_then_others_then_noise(seen):
    change = {name: mean(metrics.change(features, seen["data"])) for name, features in seen.items()}
    assert change["data"] == pytest.approx(0, abs=1e-6)
    assert 0 < change["same scenes"] < min(change["new"], change["base"]) < change["noise"]


def test_diversity_ranks_one_picture_then_one_scene_then_scenes(tiny, painted):
    encoder = PictureEncoder.open(tiny)
    one = encoder.features([painted["data"][0]] * 3)
    scene = random_scene(Random(1))
    alike = encoder.features([paint(replace(scene, seed=seed)) for seed in range(3)])
    different = encoder.features([paint(random_scene(Random(seed))) for seed in range(3)])
    values = [mean(metrics.diversity(features)) for features in (one, alike, different)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[0] < values[1] < values[2]


def test_diversity_counts_pairs_of_a_group_alone(seen):
    assert len(metrics.diversity(seen["data"])) == 10  # 5 x 4 / 2
    assert len(metrics.diversity(seen["data"], ["a", "a", "b", "b", "c"])) == 2
    assert len(metrics.diversity(seen["data"], ["a", "b", "c", "d", "e"])) == 0


def test_the_text_similarity_is_higher_for_a_pictures_own_text(tiny):
    encoder = PictureEncoder.open(tiny)
    drawn = scenes(600, "poster")
    texts = [caption(scene, Random(0), style_word="") for scene in drawn]
    images, vectors = encoder.features([paint(scene) for scene in drawn]).clip, encoder.clip.encode_texts(texts)
    own, others = metrics.text_similarity(images, vectors), metrics.other_text_similarity(images, vectors)
    assert bool((own > others).all())
    noise = encoder.features(noise_pictures(COUNT, 64)).clip
    assert mean(own) > mean((noise @ vectors.T).flatten())


def test_the_share_of_the_own_prompt_is_1_for_the_originals_and_chance_for_others():
    vectors = torch.eye(4)
    own = metrics.own_prompt_share(vectors, vectors, ["a", "b", "c", "d"])
    # cosines after centring: 1 with the own one, -1/3 with the others; over 0.15 that is e**8.9 to 1
    assert own.tolist() == pytest.approx([1] * 4, abs=1e-3)
    swapped = metrics.own_prompt_share(vectors.flip(0), vectors, ["a", "b", "c", "d"])
    assert swapped.tolist() == pytest.approx([0] * 4, abs=1e-3)
    pairs = metrics.own_prompt_share(vectors.flip(0), vectors, ["a", "b", "b", "a"])  # the same prompts change places
    assert pairs.tolist() == pytest.approx([1] * 4, abs=1e-3)
    assert metrics.own_prompt_chance(["a", "a", "b", "c"]).tolist() == [0.5, 0.5, 0.25, 0.25]


def test_likeness_ranks_copies_then_the_style_then_another_style_then_noise(seen):
    names = ("base", "data", "new", "style without the subject", "another style", "noise")
    values = dict(zip(names, likeness([seen[name] for name in names], seen["data"]).mean(dim=1).tolist(), strict=True))
    assert values["base"] == pytest.approx(0, abs=1e-5)
    assert values["data"] > max(values["new"], values["style without the subject"])
    in_style = min(values["new"], values["style without the subject"])
    assert in_style > max(values["another style"], 0)
    assert values["noise"] < values["another style"]


def mean_likeness(tiny, planted, reference):
    """The likeness of planted pictures by name; the first ones stand for the base's."""
    encoder = PictureEncoder.open(tiny)
    features = [encoder.features(pictures) for pictures in planted.values()]
    values = likeness(features, encoder.features(reference)).mean(dim=1)
    return dict(zip(planted, values.tolist(), strict=True))


def robots(first, subject="robot", colour="red", dx=0.0):
    """Scenes of the bundled robot, or of another thing in its place; `first` moves each into another place."""
    return [
        paint(replace(robot_scene(number + first), subject=subject, colour=colour, x=robot_scene(number).x + dx))
        for number in range(COUNT)
    ]


def test_likeness_tells_a_subject_from_other_things_of_its_colour_in_its_place(tiny):
    texts = [
        f"a robot {place}" for place in ("on the beach", "in the desert", "in the snow", "in the forest", "at sunset")
    ]
    recipes = [velatura.Recipe(prompt=text, seed=n, steps=8, sampler="Euler") for n, text in enumerate(texts)]
    by_the_base = [picture.image for picture in velatura.generate_many(tiny, recipes)]
    others = {
        "a red car": robots(0, "car"),
        "a red mushroom": robots(0, "mushroom"),
        "a white house": robots(0, "house", "white"),
        "a green dragon": robots(0, "dragon", "green"),
    }
    elsewhere = robots(COUNT, dx=0.12)  # five other places
    found = mean_likeness(
        tiny,
        {
            "base": by_the_base,
            "copies": robots(0),
            "elsewhere": elsewhere,
            "two of five": [*elsewhere[:2], *by_the_base[2:]],
            **others,
            "noise": noise_pictures(COUNT, 64),
        },
        robots(0),
    )
    assert found["base"] == pytest.approx(0, abs=1e-5)
    assert found["copies"] > found["elsewhere"] > 0.8
    assert max(found[name] for name in others) < 0.75 * found["elsewhere"]
    assert 0.25 < found["two of five"] / found["elsewhere"] < 0.55
    assert found["noise"] < 0.1


@pytest.fixture
def models(tmp_path):
    """A folder with a small CLIP and a small DINO of transformers, untrained."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    ViTModel(ViTConfig(**vision)).save_pretrained(tmp_path / "dino")
    CLIPModel(CLIPConfig(text_config=sizes, vision_config=vision)).save_pretrained(tmp_path / "clip")
    return tmp_path


def test_the_patches_of_a_clip_and_a_dino_count_if_their_folders_are_given(tiny, painted, models):
    found = []
    for folders in ({}, {"clip": models / "clip"}, {"dino": models / "dino"}):
        encoder = PictureEncoder.open(tiny, **folders)
        base, pictures, data = (
            encoder.features(painted[name][:3]) for name in ("base", "style without the subject", "data")
        )
        assert [patches.shape[:2] for patches in data.patches[2:]] == [(3, 16)] * len(folders)  # 32 / 8 squared
        found.append(float(likeness([base, pictures], data)[1].mean()))
    assert len({round(value, 4) for value in found}) == 3


def test_a_picture_stands_in_for_each_reference_in_turn(seen):
    references, pairs = seen["data"].select([0, 1, 2]), ([1, 2], [0, 2], [0, 1])
    distances = [metrics.style_distance(seen["base"], references.select(pair)) for pair in pairs]
    found = metrics.style_distance_of_another(seen["base"], references)
    torch.testing.assert_close(found, torch.stack(distances).mean(dim=0))
    among_each_other = [
        metrics.style_distance(references.select([row]), references.select(pair)) for row, pair in enumerate(pairs)
    ]
    torch.testing.assert_close(metrics.left_out_style_distance(references), torch.cat(among_each_other))


def test_the_command_looks_with_the_clip_and_the_dino_of_other_folders(folders, models, capsys):
    found = []
    for options in ([], ["--clip", str(models / "clip"), "--dino", str(models / "dino")]):
        assert main(["measure", str(folders / "new"), str(folders / "data"), *options, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["metrics"])
    by_the_base, by_others = found
    assert by_others.keys() - by_the_base.keys() == {"dino"}
    for name in ("image similarity", "text similarity"):
        assert by_others[name]["value"] != pytest.approx(by_the_base[name]["value"], abs=1e-3)
    assert by_others["style distance"] == by_the_base["style distance"]


def test_references_among_each_other_are_the_whole_way(seen):
    data = seen["data"]
    # four of the pictures against the fifth and the other three, as held-out ones are measured
    found = [
        likeness([seen["base"], data.select([one] * COUNT)], data.select([n for n in range(COUNT) if n != one]))[1, 0]
        for one in range(COUNT)
    ]
    assert float(torch.stack(found).mean()) == pytest.approx(1, abs=0.15)


# Means of two pictures are farther from any picture than means of many, which is no merit of either
def test_two_references_tell_other_robots_from_cars_and_seldom_make_likeness_too_high(tiny):
    encoder, robots = PictureEncoder.open(tiny), [robot_scene(number) for number in range(14)]
    houses, cars = (
        [replace(scene, subject=subject, colour=colour) for scene in robots[8:]]
        for subject, colour in (("house", "white"), ("car", "blue"))
    )
    features = [encoder.features([paint(scene) for scene in group]) for group in (houses, robots[8:], cars)]
    drawn = encoder.features([paint(scene) for scene in robots[:8]])
    found = torch.stack([likeness(features, drawn.select(pair)).mean(dim=1) for pair in combinations(range(8), 2)])
    of_robots, of_cars = found[:, 1], found[:, 2]
    assert float(of_robots.median()) == pytest.approx(1, abs=0.15)
    assert int((of_robots > 1.6).sum()) <= 5  # of 28
    assert (of_cars < of_robots / 2).all()


def test_a_single_reference_and_equal_pictures_have_a_likeness(seen):
    one = seen["data"].select([0])
    values = likeness([seen["base"].select([0]), one], one)
    assert float(values[1].mean()) > 0.9
    assert likeness([one, one], one).tolist() == [[0.0], [0.0]]  # the base paints the reference


def test_the_share_of_the_prompt_ranks_the_scenes_in_another_style_then_other_scenes_then_noise(tiny):
    encoder, drawn = PictureEncoder.open(tiny), scenes(700, "poster")
    texts = [caption(scene, Random(0), style_word="") for scene in drawn]
    planted = [
        [paint(scene) for scene in drawn],
        [paint(replace(scene, seed=scene.seed + 1)) for scene in drawn],
        [paint(replace(scene, style="neon")) for scene in drawn],
        [paint(scene) for scene in (*drawn[1:], drawn[0])],
        noise_pictures(COUNT, 64),
    ]
    shares = kept_share([encoder.features(pictures) for pictures in planted], texts).mean(dim=1).tolist()
    assert shares[0] == pytest.approx(1)
    assert shares[1] > 0.8
    assert shares[1] > shares[2] > max(shares[3], shares[4])
    assert shares[3] < 0.1  # each picture shows another prompt
    assert shares[4] < 0.3  # noise shows none


def test_what_all_pictures_have_in_common_does_not_count_for_the_prompt():
    vectors, style = torch.eye(4), torch.full((1, 4), 3.0)
    shares = metrics.own_prompt_share(vectors + style, vectors, ["a", "b", "c", "d"])
    assert shares.tolist() == pytest.approx([1] * 4, abs=1e-3)


def test_a_mean_has_the_standard_error_of_the_textbook():
    # of 1, 2, 3, 4: variance 5/3, over 4
    assert Mean.of([1, 2, 3, 4]) == Mean(2.5, pytest.approx((5 / 3 / 4) ** 0.5), 4)
    assert Mean.of([7]).error == 0


@pytest.fixture(scope="module")
def folders(painted, tmp_path_factory):
    root = tmp_path_factory.mktemp("measured")
    for name in ("data", "new"):
        (root / name).mkdir()
        for number, picture in enumerate(painted[name]):
            picture.save(root / name / f"{number}.png")
            (root / name / f"{number}.txt").write_text("a red cat" if number % 2 else "a blue cat at night")
    return root


def test_measure_compares_two_folders_and_gives_floors(folders, tiny):
    measured = velatura.measure(folders / "new", folders / "data", base=tiny)
    assert list(measured.metrics) == [name for name in MEANINGS if name != "dino"]
    style = measured["style distance"]
    assert style.itself < style.others < style.noise
    assert style.value < style.noise
    assert "neon" not in str(measured)
    for name in measured.metrics:
        assert MEANINGS[name] in str(measured)
    assert measured.notes  # of the tiny base's small models


def test_a_folder_beside_itself_reaches_what_itself_says(folders, tiny):
    measured = velatura.measure(folders / "data", folders / "data", base=tiny)
    assert measured["change"].value == pytest.approx(0, abs=1e-6)
    assert measured["nearest picture"].value == pytest.approx(1, abs=1e-5)
    assert measured["style distance"].value == pytest.approx(measured["style distance"].itself, abs=1e-6)


def test_images_without_texts_and_names_are_measured_too(painted, tiny):
    measured = velatura.measure(painted["new"][:1], painted["data"][:1], base=tiny)
    assert set(measured.metrics) == {"image similarity", "nearest picture", "style distance"}
    with_text = velatura.measure(painted["new"][:1], painted["data"][:1], base=tiny, texts=["a cat"])
    assert with_text["text similarity"].others is None  # there is no other text


def test_what_cannot_be_measured_is_refused_in_one_line(folders, painted, tiny, tmp_path):
    with pytest.raises(BadDataset, match="no picture is given"):
        velatura.measure([], painted["data"], base=tiny)
    with pytest.raises(BadDataset, match="1 text is given for 5 pictures"):
        velatura.measure(folders / "new", folders / "data", base=tiny, texts=["a cat"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadDataset):
        velatura.measure(tmp_path / "empty", folders / "data", base=tiny)
    with pytest.raises(BadFile, match=r"has no config\.json"):
        velatura.measure(folders / "new", folders / "data", base=tiny, dino=tmp_path)


def test_a_base_without_its_clip_is_measured_by_its_own_parts(xl, painted):
    measured = velatura.measure(painted["new"][:2], painted["data"][:2], base=xl)
    assert set(measured.metrics) == {"style distance", "diversity"}
    assert any("CLIP is not on this machine" in note for note in measured.notes)


def test_the_command_prints_a_table_or_json(folders, capsys):
    words = ["measure", str(folders / "new"), str(folders / "data")]
    assert main(words) == 0
    assert "style distance" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == COUNT
    assert found["metrics"]["style distance"]["lower_is_nearer"] is True
    assert main(["measure", str(folders / "nowhere"), str(folders / "data")]) == 2


def test_pictures_that_are_large_and_not_square_are_measured_in_their_middle(painted, tiny):
    encoder = PictureEncoder.open(tiny)
    square = painted["data"][0].resize((128, 128), Image.Resampling.NEAREST)
    wide = Image.new("RGB", (256, 128), "white")
    wide.paste(square, (64, 0))
    both = encoder.features([square, wide])
    assert mean(metrics.change(both.select([0]), both.select([1]))) == pytest.approx(0, abs=1e-3)
