"""Create and train routes, and the merge by the Checkpoint Merger's fields."""

from __future__ import annotations

import pytest
import torch

import velatura
from tests.server.a1111.conftest import SMALL

TRAINING = {
    "data_root": "neon",
    "training_width": 64,
    "training_height": 64,
    "steps": 2,
    "create_image_every": 0,
    "id_task": "task(train)",
}


def test_an_embedding_is_created_trained_and_used(a1111, state):
    answer = a1111.post("create/embedding", name="glow", num_vectors_per_token=2, init_text="red house")
    assert answer == {"info": "create embedding filename: glow.pt"}
    file = state.folders.models / "glow.pt"
    before = velatura.open_overlay(file).vectors[0].clone()
    fields = {"embedding_name": "glow", "learn_rate": "0.05:1, 0.01", "save_embedding_every": 0, **TRAINING}
    answer = a1111.post("train/embedding", **fields)
    assert answer["info"].startswith("train embedding complete: filename: glow.pt error: None")
    trained = velatura.open_overlay(file)
    assert trained.card.steps == 2
    assert not torch.equal(trained.vectors[0], before)
    assert a1111.get("embeddings")["loaded"]["glow"]["step"] == 2
    _, info = a1111.paint(prompt="a glow house")
    assert "TI hashes" in info["infotexts"][0]
    answer = a1111.post("train/embedding", **fields)  # steps count from the embedding's beginning
    assert "2 are done already" in answer["info"]


def test_a_hypernetwork_is_created_and_trained(a1111, state):
    fields = {"layer_structure": "1, 2, 1", "activation_func": "relu", "weight_init": "XavierNormal"}
    dropout = {"use_dropout": True, "dropout_structure": "0, 0.05, 0"}
    answer = a1111.post("create/hypernetwork", name="dusk", enable_sizes=["96", "64"], **fields, **dropout)
    assert answer == {"info": "create hypernetwork filename: dusk.pt"}
    structure = velatura.open_overlay(state.folders.models / "dusk.pt").structure
    assert (structure.widths, structure.layers, structure.activation) == ((96, 64), (1, 2, 1), "relu")
    assert structure.dropout == (0, 0.05, 0)
    fields = {"hypernetwork_name": "dusk", "learn_rate": "1e-3", "save_hypernetwork_every": 0, **TRAINING}
    answer = a1111.post("train/hypernetwork", **fields)
    assert answer["info"].startswith("train hypernetwork complete")
    assert velatura.open_overlay(state.folders.models / "dusk.pt").card.steps == 2
    assert (state.folders.models / "dusk.pt.optim").is_file()


def test_a_name_that_is_taken_is_refused_unless_it_may_be_overwritten(a1111):
    a1111.post("create/embedding", name="twice")
    assert "already" in a1111.post("create/embedding", 409, name="twice")["detail"]
    a1111.post("create/embedding", name="twice", overwrite_old=True)


@pytest.mark.parametrize("name", ["", "..", "///", "💥"])
def test_a_name_without_letters_is_refused(a1111, name):
    a1111.post("create/embedding", 422, name=name)


def test_a_path_in_a_name_loses_its_slashes(a1111, state):
    assert a1111.post("create/embedding", name="../up")["info"].endswith("up.pt")
    assert (state.folders.models / "up.pt").is_file()


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding_name": "no such embedding"},
        {"data_root": "/etc"},
        {"data_root": "../pictures"},
        {"data_root": "no such dataset"},
        {"learn_rate": "fast"},
        {"template_filename": "../../etc/passwd"},
        {"steps": 10**9},
        {"batch_size": 0},
    ],
    ids=str,
)
def test_mistakes_of_a_training_stand_in_info_as_in_a1111(a1111, changes):
    a1111.post("create/embedding", name="base-word", overwrite_old=True)
    fields = {"embedding_name": "base-word", "save_embedding_every": 0, **TRAINING, **changes}
    info = a1111.post("train/embedding", **fields)["info"]
    assert info.startswith("train embedding error: ")
    assert "/etc" not in info.replace("../../etc/passwd", "")


@pytest.fixture(scope="module")
def merged(client):
    """A checkpoint that was merged by the route."""
    fields = {"primary_model_name": "tiny", "interp_method": "No interpolation", "custom_name": "copy"}
    answer = client.post("/sdapi/v1/checkpoint-merger", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_base_is_merged_chosen_and_painted_with(a1111, merged):
    assert merged == {"info": "Checkpoint saved to copy.safetensors"}
    assert "copy" in {model["model_name"] for model in a1111.get("sd-models")}
    _, info = a1111.paint(override_settings={"sd_model_checkpoint": "copy"})
    assert info["sd_model_name"] == "copy"
    _, info = a1111.paint()
    assert info["sd_model_name"] == "tiny"


def test_a_weighted_sum_is_named_as_a1111_names_it(a1111, merged, state):
    fields = {"primary_model_name": "copy", "secondary_model_name": "tiny", "multiplier": 0.3}
    answer = a1111.post("checkpoint-merger", **fields)
    assert answer["info"] == "Checkpoint saved to 0.7(copy) + 0.3(tiny).safetensors"
    (state.folders.models / "0.7(copy) + 0.3(tiny).safetensors").unlink()


@pytest.mark.parametrize(
    "changes",
    [
        {"secondary_model_name": None},
        {"primary_model_name": "no such model"},
        {"interp_method": "Add difference"},
        {"interp_method": "Guess"},
        {"custom_name": "../up"},
        {"config_source": 9},
        {"discard_weights": "("},
        {"metadata_json": "[1]"},
        {"bake_in_vae": "/etc/passwd"},
    ],
    ids=str,
)
def test_a_merge_that_cannot_be_is_refused(a1111, changes):
    a1111.post("checkpoint-merger", 422, **{"primary_model_name": "tiny", "secondary_model_name": "tiny", **changes})


def test_pictures_are_still_painted_afterwards(a1111):
    assert len(a1111.post("txt2img", **SMALL)["images"]) == 1
