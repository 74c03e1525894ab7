"""python -m tools.witness --out hashes.json: one hash for each of many pictures, trainings and files of the tiny base.

It shows that a change which should change nothing changes nothing: keep the hashes of before, make the change, and
`python -m tools.witness --against hashes.json` names each result that differs, with exit status 1. `--only PREFIX`
makes a part of them, `--keep FOLDER` leaves all files there to be looked at. All of it takes three minutes on one core,
and the hashes hold on one machine, with one torch.

Nearly everything is made by command lines, as people type them, and the rest by the public names of the package, so
that whatever moves inside moves without a change here. Of pictures the pixels count and, apart from them, what is
written in them; of tensor files the tensors and, apart from them, their metadata. Seconds, versions and places on disk
are left out.
"""

import argparse
import hashlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

import velatura
from tools.witness_cases import ALGORITHMS, CASES, STOCK, Case

LEFT_OUT = {"seconds", "log_size", "velatura", "torch", "base_from"}  # fields
PICTURE_FILES = {".png", ".webp", ".jpg"}


def command(line: str) -> str:
    """Run `velatura` with these words in this process, and return what it prints; raises RuntimeError if it fails."""
    out, errors = io.StringIO(), io.StringIO()
    words, status = ["velatura", *shlex.split(line)], None
    with patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(errors):
        try:
            runpy.run_module("velatura", run_name="__main__")
        except SystemExit as leaving:
            status = leaving.code
    if status:
        raise RuntimeError(f"{shlex.join(words)} ended with {status}: {errors.getvalue().strip().splitlines()[-1:]}")
    return out.getvalue()


def stock(folder: Path) -> None:
    """Lay out what cases begin with: untrained overlays that do something nevertheless, models, pictures, lists."""
    folder.mkdir(parents=True)
    base = velatura.tiny()
    for name, activation in (("hyper", "relu"), ("linear", "linear")):
        made = velatura.Hypernetwork.for_base(base, activation=activation, init="xavier_normal", seed=1, name=name)
        velatura.save(made, folder / f"{name}.safetensors")
    for each in ALGORITHMS:
        targets = "conv" if each in {"locon", "norm"} else "attention"
        made = velatura.Lora.for_base(base, rank=4, algorithm=each, targets=targets, text=True, seed=1, name=each)
        velatura.save(made, folder / f"{each}.safetensors")
        _stir(folder / f"{each}.safetensors", 0.1)
    velatura.save(velatura.Difference.for_base(base, text=True, name="robot"), folder / "robot.safetensors")
    _stir(folder / "robot.safetensors", 0.01)
    word = velatura.Embedding.for_base(base, name="zorp", vectors=2, initial="blue night", seed=1)
    velatura.save(word, folder / "zorp.safetensors")
    for each in ("other", "third", "velocity"):
        velatura.save(base, folder / f"{each}.safetensors")
        _stir(folder / f"{each}.safetensors", 0.01, each)
    _make_velocity(folder / "velocity.safetensors")
    (folder / "mix.hns").write_text("[('hyper', 0.5), {'linear': 1, 'hyper': 3}]")
    (folder / "prompts.txt").write_text("a red house --s 4 --d 7\na green boat --n red --d 8 --count 2\n")
    (folder / "four.txt").write_text("a red house\na blue boat\na green fish at night\nan orange cat\n")
    (folder / "styles.csv").write_text('name,prompt,negative_prompt\npale,"pale, {prompt}",dark\n')
    _lay_out_pictures(folder)
    command(f"train aesthetic {folder / 'photos'} --name dusk --out {folder / 'dusk.safetensors'}")


def _lay_out_pictures(folder: Path) -> None:
    """Twelve drawings as they ship, six of several shapes with masks, an image to begin from and its mask."""
    shipped = sorted(velatura.tiny_pictures("neon").iterdir())
    for each in shipped[:12]:
        (folder / "photos").mkdir(exist_ok=True)
        shutil.copy(each, folder / "photos" / each.name)
    (folder / "shapes" / "mask").mkdir(parents=True)
    mask = Image.radial_gradient("L").resize((64, 64)).point(lambda shade: 255 if shade < 128 else 0)
    for place, each in enumerate(shipped[:12:2]):
        with Image.open(each) as picture:
            size = ((64, 64), (80, 48), (48, 80))[place % 3]
            picture.resize(size).save(folder / "shapes" / each.name)
        if place % 2:
            mask.resize(size).save(folder / "shapes" / "mask" / each.name)
        shutil.copy(each.with_suffix(".txt"), folder / "shapes")
    shutil.copy(shipped[-2], folder / "image.png")
    mask.save(folder / "mask.png")


def _stir(path: Path, amount: float, seed: str = "") -> None:
    """Add noise to each tensor of a safetensors file but its alphas, in place; drawn from the tensor's name there."""
    data = bytearray(path.read_bytes())
    tensors, _, start = _read_header(data)
    for name, each in tensors.items():
        if each["dtype"] == "F32" and each["shape"]:
            first, last = each["data_offsets"]
            numbers = np.frombuffer(data, np.float32, (last - first) // 4, start + first)
            chance = np.random.default_rng(zlib.crc32(f"{seed}{name}".encode()))
            numbers += amount * chance.standard_normal(numbers.size, np.float32)
    path.write_bytes(data)


def _make_velocity(path: Path) -> None:
    """Let a model say, by two empty tensors, that it predicts velocity, on a schedule that ends in noise alone."""
    data = path.read_bytes()
    header, metadata, start = _read_header(data)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(data) - start] * 2}
    metadata["modelspec.prediction_type"] = "v"
    said = json.dumps({"__metadata__": metadata, **header, "v_pred": empty, "ztsnr": empty}).encode()
    path.write_bytes(len(said).to_bytes(8, "little") + said + data[start:])


def _read_header(data: bytes | bytearray) -> tuple[dict[str, Any], dict[str, str], int]:
    """What a safetensors file says of its tensors and of itself, and where the tensors begin."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    return header, metadata, start


# --- Hashes


def hashes_of(path: Path) -> dict[str, str]:
    """A hash for each part of a file that counts, by what it is."""
    if path.suffix in PICTURE_FILES:
        with Image.open(path) as picture:
            told = sorted((key, each) for key, each in picture.info.items() if isinstance(each, str))
            pixels = _hash((picture.mode, picture.size, picture.tobytes()))
            return {"pixels": pixels} | ({"told": _hash(told)} if told else {})
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix in {".safetensors", ".state"} and start[8:] == b"{":
        return _of_safetensors(path)
    if path.suffix in {".pt", ".bin", ".optim"}:
        import torch

        return {"tensors": _hash(torch.load(path, weights_only=True))}
    return {"text": _hash(path.read_text("utf-8"))}


def _of_safetensors(path: Path) -> dict[str, str]:
    """Of the bytes of each tensor with its name, precision and shape, and of the metadata."""
    data = path.read_bytes()
    header, metadata, start = _read_header(data)
    tensors = {
        name: (each["dtype"], each["shape"], data[slice(*(start + place for place in each["data_offsets"]))])
        for name, each in header.items()
    }
    return {"tensors": _hash(tensors), "metadata": _hash(metadata)}


def _hash(thing: object) -> str:
    return hashlib.sha256(b"".join(_told(thing))).hexdigest()[:16]


def _told(thing: object) -> Iterator[bytes]:
    """All of a thing that counts, in one order; texts that are JSON are read as such."""
    import torch

    if isinstance(thing, dict):
        for key in sorted(thing, key=str):
            if key not in LEFT_OUT:
                yield from (repr(key).encode(), b":", *_told(thing[key]), b",")
    elif isinstance(thing, list | tuple):
        for each in thing:
            yield from (*_told(each), b";")
    elif isinstance(thing, str):
        yield from _told_of_text(thing)
    elif isinstance(thing, bytes):
        yield thing
    elif isinstance(thing, torch.Tensor):
        yield f"{thing.dtype}{tuple(thing.shape)}".encode()
        yield thing.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        yield repr(thing).encode()


def _told_of_text(text: str) -> Iterator[bytes]:
    """What JSON says, or lines of JSON; else the text without versions and places on disk."""
    for whole in ((text,), text.splitlines()):
        with suppress(ValueError):
            found = [json.loads(each) for each in whole]
            if any(isinstance(each, dict | list) for each in found):
                yield from _told(found)
                return
    text = re.sub(r"velatura \d[\w.]*", "velatura", text.replace(str(Path("../..").resolve()), ""))
    yield re.sub("base64,[^\"')]+", "", text).encode()  # a page's pictures, which count as files of their own


# --- All together


def witness(only: str, work: Path, *, keep: bool = False) -> Iterator[tuple[str, str]]:
    """Make the cases whose names begin so, in folders of their own in this one, and tell the hash of each result."""
    wanted = {name: case for name, case in CASES.items() if name.startswith(only)}
    if any(STOCK in str(step) or callable(step) for case in wanted.values() for step in case):
        stock(work / "stock")
    for name, case in wanted.items():
        place = work / "cases" / re.sub(r"\W+", "-", name)
        place.mkdir(parents=True)
        started = time.perf_counter()
        with chdir(place), patch.dict(os.environ, VELATURA_CACHE=str(work / "caches" / place.name)):
            yield from _results(name, case)
        print(f"{time.perf_counter() - started:6.1f} s  {name}", file=sys.stderr)
        if not keep:
            shutil.rmtree(place)


def _results(name: str, case: Case) -> Iterator[tuple[str, str]]:
    try:
        said = [command(step) if isinstance(step, str) else step() for step in case]
    except Exception as error:  # noqa: BLE001  (told as this case's result; the others go on)
        yield name, f"failed: {error!r}"
        return
    if re.search("--json|--help", str(case)):
        yield f"{name}: said", _hash(said)
    for path in sorted(each for each in Path().rglob("*") if each.is_file()):
        for part, found in hashes_of(path).items():
            yield f"{name}: {path} {part}", found


@contextmanager
def _alone() -> Iterator[None]:
    """On one thread, without the library's warnings, at a terminal of a known width."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with patch.dict(os.environ, COLUMNS="100", NO_COLOR="1"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def differences(kept: dict[str, str], found: dict[str, str]) -> list[str]:
    """A line for each result that is another, or that only one of both has."""
    told = [f"differs: {name}" for name in kept if name in found and kept[name] != found[name]]
    told += [f"gone:    {name}" for name in kept if name not in found]
    return [*told, *(f"new:     {name}" for name in found if name not in kept)]


def main(words: Sequence[str] | None = None) -> int:
    """Make what is asked for, keep its hashes or compare them, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.witness", description=__doc__)
    parser.add_argument("--out", type=Path, help="where to keep the hashes")
    parser.add_argument("--against", type=Path, help="hashes that were kept, to compare with")
    parser.add_argument("--only", default="", metavar="PREFIX", help="the cases whose names begin so: picture/lora")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for all files that are made")
    asked = parser.parse_args(words)
    if not any(name.startswith(asked.only) for name in CASES):
        parser.error(f"the name of no case begins with {asked.only!r}")
    kept = json.loads(asked.against.read_text("utf-8")) if asked.against else {}
    with tempfile.TemporaryDirectory() as passing, _alone():
        found = dict(witness(asked.only, (asked.keep or Path(passing)).resolve(), keep=asked.keep is not None))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    failed = [f"{name} {each}" for name, each in found.items() if each.startswith("failed")]
    told = differences({name: each for name, each in kept.items() if name.startswith(asked.only)}, found)
    print(*failed, *(told if asked.against else ()), f"{len(found)} results", sep="\n")
    return 1 if failed or (told and asked.against) else 0


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    sys.exit(main())
