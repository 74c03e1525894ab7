"""Settings that another program wrote into a picture: access by type, and one warning for what is not supported."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Self, cast

from velatura.errors import BadRecipe, warn
from velatura.files import is_unset
from velatura.sampling.recipe.infotext import NEGATIVE_PREFIX, write_infotext
from velatura.sampling.recipe.sampler_names import SAMPLER_ALIASES, draws_gpu_noise, name_key, split_sampler_name

JsonObject = Mapping[str, object]

MODEL_SUFFIX = re.compile(r"\.(safetensors|sft|ckpt|pt|pth|bin)$", re.IGNORECASE)
TAG_MARKS = set("<>:\n")  # which the name in a tag cannot hold
NO_VALUE_WORDS = {"", "none", "null", "undefined"}  # in place of a name
MAX_WRITTEN_SIDE = 100_000  # in pixels; beyond, a number has an exponent
MAX_VALUE_LENGTH = 60  # of a setting that a message shows
# A1111's names of samplers, by which the aliases of other programs are known
SAMPLER_NAMES = {name_key(name): name for name in (*SAMPLER_ALIASES.values(), "DPM fast", "Restart")}


class ProgramSettings:
    """Settings of a picture by another program."""

    def __init__(
        self, program: str, values: JsonObject, *, ignored: str = "", neutral: JsonObject | None = None
    ) -> None:
        """Wrap the settings.

        Args:
            program: Name of the program, for messages.
            values: The settings by their names in that program.
            ignored: Regular expression for names of settings that do not change the picture.
            neutral: Values with which a setting leaves the picture as it is.
        """
        self.program = program
        self.notes: list[str] = []  # what changes the picture and is not supported
        self._inner: dict[str, ProgramSettings] = {}
        self._values = values
        self._ignored = re.compile(ignored)
        self._neutral = dict(neutral or {})
        self._read: set[str] = set()

    def inside(self, place: str, values: object, *, ignored: str = "", neutral: JsonObject | None = None) -> Self:
        """Return the settings in an object inside these; what is not read of them is named with these.

        Args:
            place: Where the object is, for messages: the name of its setting, with a number if it is in a list; "" for
                an object that holds all settings of the picture.
            values: The object; anything else counts as an empty one.
            ignored, neutral: As of a program's settings.
        """
        entries: JsonObject = cast("JsonObject", values) if isinstance(values, dict) else {}
        inner = type(self)(self.program, entries, ignored=ignored, neutral=neutral)
        inner.notes = self.notes
        self._inner[place] = inner
        return inner

    def take(self, *keys: str) -> object:
        """Return the value of the first of the keys that has one, or None."""
        for key in keys:
            value = self._values.get(key)
            if value is not None and value != "":
                self._read.add(key)
                return value
        return None

    def text(self, *keys: str) -> str:
        """Return a text, or "" if there is none.

        Raises:
            BadRecipe: The value is not a text.
        """
        value = self.take(*keys)
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        raise self.bad_value(keys[0], value, "a text")

    def prompt(self, *keys: str) -> str:
        """Return a prompt, which may be empty.

        Raises:
            BadRecipe: None of the keys is there, or the value is not a text.
        """
        if not any(isinstance(self._values.get(key), str) for key in keys):
            raise BadRecipe(f"the metadata of {self.program} has no {keys[0]} in words: use a picture as it was saved")
        return self.text(*keys)

    def name(self, *keys: str) -> str | None:
        """Return a name, or None if there is none, or a word that says so."""
        name = self.text(*keys).strip()
        return None if name.lower() in NO_VALUE_WORDS else name

    def number(self, *keys: str) -> float | int | None:
        """Return a number, which may be written as a text, or None if there is none.

        Raises:
            BadRecipe: The value is not a finite number.
        """
        return self.read_number(keys[0], self.take(*keys))

    def read_number(self, key: str, value: object) -> float | int | None:
        """Return a value of a list or an object as a number; see `number`.

        Args:
            key: Name of the setting, for the message.
            value: The value.

        Raises:
            BadRecipe: The value is not a finite number.
        """
        if value is None:
            return None
        text = "" if isinstance(value, bool | list | dict) else str(value).strip()
        if re.fullmatch(r"[+-]?\d{1,30}", text):
            return int(text)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self.bad_value(key, cast("object", value), "a number")
        return number

    def flag(self, *keys: str) -> bool:
        """Return True if a setting is on.

        Raises:
            BadRecipe: The value is not true or false.
        """
        value = self.take(*keys)
        word = str(value).strip().lower()
        if value is None or word in {"false", "0", "no", "none", "off"}:
            return False
        if word in {"true", "1", "yes", "on"}:
            return True
        raise self.bad_value(keys[0], value, "true or false")

    def items(self, *keys: str) -> list[object]:
        """Return a list, which may be written as a text with commas.

        Raises:
            BadRecipe: The value is neither.
        """
        value = self.take(*keys)
        if value is None:
            return []
        if isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return [value]
        if isinstance(value, list):
            return cast("list[object]", value)
        raise self.bad_value(keys[0], value, "a list")

    def section(self, *keys: str) -> JsonObject:
        """Return an object, or an empty one.

        Raises:
            BadRecipe: The value is something else.
        """
        value = self.take(*keys)
        if value is None:
            return {}
        if isinstance(value, dict):
            return cast("JsonObject", value)
        raise self.bad_value(keys[0], value, "an object")

    def size(self, width: float | None, height: float | None, picture: tuple[int, int]) -> str | None:
        """Return the size that the picture was made at, and note if the picture has another.

        Args:
            width, height: The size in the settings; the picture's own if one is None.
            picture: Width and height of the picture.
        """
        if width is None or height is None:
            return f"{picture[0]}x{picture[1]}" if any(picture) else None
        size = f"{width:g}x{height:g}" if max(width, height) < MAX_WRITTEN_SIDE else f"{width}x{height}"
        if picture not in {(width, height), (0, 0)}:
            self.note(f"that it was resized from {size} to {picture[0]}x{picture[1]}")
        return size

    def note(self, text: str) -> None:
        """Remember something that changes the picture and is not supported."""
        self.notes.append(text)

    def bad_value(self, key: str, value: object, expected: str) -> BadRecipe:
        """Return the error for a value of a wrong type."""
        return BadRecipe(
            f"the metadata of {self.program} has {key}: {shorten(value)}, which is not {expected}: use a picture as it "
            "was saved"
        )

    def infotext(self, prompt: str, negative: str, fields: Mapping[str, object]) -> str:
        """Return the recipe as infotext, and warn once of all that was not read.

        Args:
            prompt, negative: The prompts.
            fields: The fields of infotext; those that are None are left out.

        Raises:
            BadRecipe: A prompt has a line that infotext cannot hold.
        """
        for text in (prompt, negative):
            if any(line.strip().startswith(NEGATIVE_PREFIX) for line in text.split("\n")):
                raise BadRecipe(
                    f"a prompt in the metadata of {self.program} has a line that starts with {NEGATIVE_PREFIX!r}: "
                    "give the prompt and the negative prompt by options"
                )
        unread = list(self._describe_unread())
        if unread or self.notes:
            warn(
                f"the picture is by {self.program}, and velatura does not support {'; '.join([*self.notes, *unread])}: "
                "its picture will be different"
            )
        return write_infotext(prompt, negative, fields)

    def sampler_fields(self, sampler: str | None, scheduler: str | None) -> dict[str, object]:
        """Return the fields for a sampler and a noise schedule by their names in another program.

        A name that velatura does not know stays as it is: sampling refuses it, and names the nearest.

        Args:
            sampler: Name of the sampler, which may end in a schedule.
            scheduler: Name of the noise schedule, if it has its own setting.
        """
        if sampler is None:
            return {"Sampler": None, "Schedule type": scheduler}
        if draws_gpu_noise(sampler):
            self.note(f"that {sampler} draws its noise on the GPU and the first noise comes from the CPU")
        for key, suffix in split_sampler_name(sampler):
            known = SAMPLER_ALIASES.get(key) or SAMPLER_NAMES.get(key)
            if known:
                return {"Sampler": known, "Schedule type": scheduler or suffix}
        return {"Sampler": sampler, "Schedule type": scheduler}

    def main_fields(
        self,
        sampler: Mapping[str, object],
        sides: tuple[float | None, float | None],
        picture: tuple[int, int],
        *,
        steps: str = "steps",
        guidance: str,
    ) -> dict[str, object]:
        """Return the fields that the recipe of every program has.

        Args:
            sampler: The fields for the sampler, see `sampler_fields`.
            sides: Width and height in the settings, see `sides`.
            picture: Width and height of the picture.
            steps, guidance: Names of the settings with the steps and the guidance.

        Raises:
            BadRecipe: A value is not a number.
        """
        return {
            "Steps": self.number(steps),
            **sampler,
            "CFG scale": self.number(guidance),
            "Seed": self.number("seed"),
            "Size": self.size(*sides, picture),
        }

    def sides(self, both: str = "") -> tuple[float | None, float | None]:
        """Return width and height, None for one that there is not.

        Args:
            both: Name of a setting with both, such as "(512, 768)", where a program has one.

        Raises:
            BadRecipe: A value is not a number, or the one with both is not two numbers.
        """
        text = self.take(both)
        if text is None:
            return self.number("width"), self.number("height")
        sides = re.findall(r"\d+", str(text))
        if len(sides) != 2:
            raise self.bad_value(both, text, "width and height")
        return int(sides[0]), int(sides[1])

    def note_init_image(self) -> None:
        """Note that the picture started from an image."""
        self.note("that it started from an image, which the picture does not contain")

    def _describe_unread(self, place: str = "") -> Iterator[str]:
        """Yield the settings that nobody has read and that change the picture, with those in the objects inside."""
        for key, value in self._values.items():
            if key not in self._read and not self._ignored.fullmatch(key) and not self._is_neutral(key, value):
                yield f"{place}{key}: {shorten(value)}"
        for inner_place, inner in self._inner.items():
            yield from inner._describe_unread(f"{place}{inner_place}." if inner_place else place)

    def _is_neutral(self, key: str, value: object) -> bool:
        """Return True for a value that is empty or false, or leaves the picture as it is."""
        if is_unset(value):
            return True
        if key not in self._neutral:
            return False
        neutral = self._neutral[key]
        try:
            return float(str(value)) == float(str(neutral))
        except ValueError:
            return str(value).lower() == str(neutral).lower()


def overlay_tag(settings: ProgramSettings, kind: str, name: str, *strengths: object) -> str:
    """Return the tag that calls an overlay, or "" with a note if a tag cannot hold its name.

    Args:
        settings: The settings that name it.
        kind: Kind of the overlay, such as "lora".
        name: Name or path of its file.
        strengths: The strength, or those of the text encoders and of the UNet.
    """
    stem = model_name(name)
    if TAG_MARKS & set(stem) or not stem.strip():
        settings.note(f"the {kind} {stem!r}, whose name a tag cannot hold")
        return ""
    return f"<{kind}:{':'.join([stem, *map(str, strengths)])}>"


def add_tags(prompt: str, tags: Iterable[str]) -> str:
    """Return a prompt with tags at its end, or before it if a comment would swallow them."""
    parts = [prompt, " ".join(filter(None, tags))]
    return " ".join(filter(None, parts[::-1] if "#" in prompt else parts))


def model_name(name: str) -> str:
    """Return the name of a model's file without its suffix, with slashes between folders."""
    return MODEL_SUFFIX.sub("", name.replace("\\", "/").strip())


def parse_object(text: object) -> JsonObject | None:
    """Return the JSON object that a text holds, or None if it holds none."""
    try:
        parsed: object = json.loads(text, strict=False) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return None
    return cast("JsonObject", parsed) if isinstance(parsed, dict) else None


def shorten(value: object) -> str:
    """Return a value in the form of a message."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}..."
