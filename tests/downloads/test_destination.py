import pytest
from hypothesis import given
from hypothesis import strategies as st

from velatura.downloads.destination import MAX_NAME_BYTES, MODEL_ENDINGS, safe_name
from velatura.errors import DownloadFailed


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("ink.safetensors", "ink.safetensors"),
        ("Ink Style v1.2.PT", "Ink Style v1.2.pt"),
        ("../../etc/cron.d/ink.pt", "ink.pt"),
        ("..\\..\\Windows\\ink.pt", "ink.pt"),
        ("/root/.ssh/ink.ckpt", "ink.ckpt"),
        ("C:ink.pt", "Cink.pt"),
        ("ink\x1b[31m\x00\n.pt", "ink[31m.pt"),
        ("ink\u202etp.pt", "inktp.pt"),
        ("...ink.pt", "ink.pt"),
        ("-rf.pt", "rf.pt"),
        ('a<b>c:"d|e?f*.pt', "abcdef.pt"),
        ("CON.pt", "_CON.pt"),
        ("com1.safetensors", "_com1.safetensors"),
        ("ink .pt", "ink.pt"),
        ("墨.safetensors", "墨.safetensors"),
        ("A\u030angstro\u0308m.pt", "Ångström.pt"),
    ],
)
def test_a_strangers_name_becomes_a_safe_one(given_name, name):
    assert safe_name(given_name) == name


@pytest.mark.parametrize(
    "given_name", ["", "ink", "ink.zip", "ink.exe", "ink.pt.exe", ".pt", "../.safetensors", "ink.py", "...", "ink.pt/"]
)
def test_what_is_called_otherwise_is_not_fetched(given_name):
    with pytest.raises(DownloadFailed, match=r"is not a model file: choose one that ends in .safetensors"):
        safe_name(given_name)


def test_a_long_name_is_cut_and_keeps_its_ending():
    name = safe_name("é" * 1000 + ".safetensors")
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert name.endswith("é.safetensors")


@given(st.text(max_size=300), st.sampled_from(MODEL_ENDINGS))
def test_any_name_stays_in_its_folder(given_name, ending):
    try:
        name = safe_name(given_name + ending)
    except DownloadFailed:
        return
    assert not set(name) & set('/\\\0<>:"|?*')
    assert name.isprintable()
    assert name.endswith(MODEL_ENDINGS)
    assert name == name.strip(" .")
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert safe_name(name) == name
