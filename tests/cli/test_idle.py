import pytest

import velatura
from velatura.cli.app import USER_ERROR_STATUS, main


@pytest.mark.parametrize(
    ("kind", "alone", "wanted"),
    [
        ("dreambooth", ["--class-pictures", "16"], "--class-prompt"),
        ("dreambooth", ["--text-rate", "5e-5"], "--text"),
        ("lora", ["--initial", "a robot"], "--word"),
    ],
)
def test_an_option_that_would_do_nothing_alone_is_refused(kind, alone, wanted, capsys):
    assert main(["train", kind, str(velatura.tiny_pictures("robot")), *alone, "--dry-run"]) == USER_ERROR_STATUS
    assert f"{alone[0]} has no meaning without {wanted}:" in capsys.readouterr().err
