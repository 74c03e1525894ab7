"""Find the recipe among the texts inside a picture, whichever program wrote them."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

from velatura.errors import BadRecipe
from velatura.sampling.recipe.comfyui import infotext_from_comfyui
from velatura.sampling.recipe.infotext import NEGATIVE_PREFIX, split_infotext
from velatura.sampling.recipe.programs import draw_things, easy_diffusion, fooocus, invokeai, swarmui
from velatura.sampling.recipe.programs.novelai import infotext_from_novelai
from velatura.sampling.recipe.programs.settings import JsonObject, parse_object, shorten

PARAMETERS, USER_COMMENT, COMMENT, XMP = "parameters", "UserComment", "comment", "XMP"
# Where A1111 and those that follow it write infotext, or JSON in its place; EXIF comes first, as in A1111
COMMENT_CARRIERS = (USER_COMMENT, PARAMETERS, COMMENT, "ImageDescription", "XPComment", "metadata", "Description")
# What tells of programs whose metadata velatura does not read, in the texts that name a program
UNREAD_PROGRAMS = {
    "Midjourney": ("midjourney",),
    "DALL-E": ("DALL-E", "OpenAI"),
    "Adobe Firefly": ("Adobe Firefly",),
    "Ideogram": ("ideogram.ai",),
    "Leonardo": ("leonardo.ai", "LeonardoAI"),
    "PixAI": ("pixai.art",),
}
PROGRAM_CHUNKS = frozenset(
    {"software", "exif software", "make", "creator", "creatortool", "author", "source", XMP.lower()}
)
MIDJOURNEY_JOB = re.compile(r"\bJob ID: ?[0-9a-f]", re.IGNORECASE)  # behind the prompt in the Description
SOFTWARE_KEYS = ("software", "Software", "source", "Source", "generator", "app", "Creator", "creator")
MAX_SHOWN_KEYS = 6
NO_RECIPE = "so it contains no recipe that velatura reads: give the prompt and the settings by options"
GRAPH_REFUSAL = "the graph of ComfyUI does not tell how the picture was made"


class PictureText(NamedTuple):
    """A text inside a picture that says how it was made.

    Attributes:
        infotext: The text as infotext.
        carrier: Where it was, such as "parameters".
    """

    infotext: str
    carrier: str

    @property
    def has_settings(self) -> bool:
        """Return True if the text has a line of settings, or a negative prompt: it is more than a comment."""
        lines = split_infotext(self.infotext)
        return bool(lines.fields) or any(line.strip().startswith(NEGATIVE_PREFIX) for line in lines.prompts)


def find_infotext(texts: Mapping[str, str], size: tuple[int, int]) -> PictureText | None:
    """Find the recipe in the texts of a picture, and translate it into infotext.

    Args:
        texts: The texts by the names of chunks and tags.
        size: Width and height of the picture.

    Returns:
        The recipe; a comment that is not one, if nothing else is found; or None without any text.

    Raises:
        BadRecipe: The metadata is of a program that is known and not read, or damaged.
    """
    for carrier in COMMENT_CARRIERS:
        text = texts.get(carrier, "")
        if carrier != "Description" and split_infotext(text).fields and parse_object(text) is None:
            return PictureText(text, carrier)
    for find in (_find_chunks_of_programs, _find_json, _find_graph):
        found = find(texts, size)
        if found:
            return found
    _refuse_unread_program(texts)
    return next((PictureText(texts[carrier], carrier) for carrier in COMMENT_CARRIERS[:5] if carrier in texts), None)


def infotext_from_json(values: JsonObject, size: tuple[int, int]) -> str:
    """Translate JSON that stands where infotext is expected.

    Args:
        values: The JSON object.
        size: Width and height of the picture, (0, 0) without a picture.

    Raises:
        BadRecipe: No reader knows it, or a value has the wrong type.
    """
    keys = frozenset(values)
    plain_keys = frozenset(key.lower().replace(" ", "_") for key in keys)
    for reader in JSON_READERS:
        if reader.knows(keys, plain_keys) and (infotext := reader.translate(values, size)) is not None:
            return infotext
    if _is_graph(values):
        chunk = "workflow" if {"nodes", "links"} <= keys else "prompt"
        infotext = infotext_from_comfyui({chunk: json.dumps(values)}, size)
        if infotext is None:
            raise BadRecipe(f"{GRAPH_REFUSAL}, {NO_RECIPE}")
        return infotext
    if "prompt" in plain_keys and easy_diffusion.DIFFUSERS_KEYS & plain_keys:
        return easy_diffusion.infotext_from_plain_settings(values, "a program with the names of diffusers", size)
    raise _unknown_json(values)


@dataclass(frozen=True)
class JsonReader:
    """A reader of the JSON of one program.

    Attributes:
        knows: Says whether JSON is the program's, by its keys as they are, and in lower case with underscores.
        translate: Translates it into infotext, or returns None if it has no settings after all.
    """

    knows: Callable[[frozenset[str], frozenset[str]], bool]
    translate: Callable[[JsonObject, tuple[int, int]], str | None]


JSON_READERS = (
    JsonReader(lambda keys, _: swarmui.SETTINGS_KEY in keys, swarmui.infotext_from_swarmui),
    JsonReader(
        lambda keys, _: bool(invokeai.PROMPT_KEYS & keys and invokeai.OTHER_KEYS & keys),
        invokeai.infotext_from_invokeai,
    ),
    JsonReader(
        lambda keys, _: "image" in keys and bool({"app_id", "model_weights", "app_version"} & keys),
        invokeai.infotext_from_sd_metadata,
    ),
    JsonReader(
        lambda keys, _: keys >= draw_things.KEYS or keys >= {"c", "sampler", "scale"},
        draw_things.infotext_from_draw_things,
    ),
    JsonReader(
        lambda keys, _: bool({"uc", "v4_prompt"} & keys),
        lambda values, size: infotext_from_novelai(values, "", size),
    ),
    JsonReader(
        lambda _, keys: len(fooocus.KEYS & keys) > 1 or keys >= {"base_model", "guidance_scale"},
        fooocus.infotext_from_fooocus,
    ),
    JsonReader(
        lambda _, keys: "prompt" in keys and bool(easy_diffusion.KEYS & keys),
        lambda values, size: easy_diffusion.infotext_from_plain_settings(values, "Easy Diffusion", size),
    ),
    JsonReader(lambda keys, _: bool(draw_things.CIVITAI_KEYS & keys), draw_things.infotext_from_civitai),
)


def _find_chunks_of_programs(texts: Mapping[str, str], size: tuple[int, int]) -> PictureText | None:
    """Read chunks whose names say which program wrote them: InvokeAI, NovelAI and Easy Diffusion."""
    if texts.get("Software") == "NovelAI" or texts.get("Title") == "AI generated image":
        values = parse_object(texts.get("Comment"))
        if values is None and texts.get("Software") == "NovelAI":
            raise BadRecipe(f"the picture is by NovelAI, and its Comment is not JSON, {NO_RECIPE}")
        if values is not None:
            return PictureText(infotext_from_novelai(values, texts.get("Description", ""), size), "Comment")
    for chunk, translate in (
        ("invokeai_metadata", invokeai.infotext_from_invokeai),
        ("sd-metadata", invokeai.infotext_from_sd_metadata),
    ):
        if chunk in texts:
            return PictureText(translate(_parse_chunk(texts, chunk, "InvokeAI"), size), chunk)
    if "Dream" in texts:
        return PictureText(invokeai.infotext_from_dream(texts["Dream"], size), "Dream")
    if easy_diffusion.KEYS & {key.lower().replace(" ", "_") for key in texts}:
        named = {key: value for key, value in texts.items() if key not in {XMP, USER_COMMENT}}
        return PictureText(easy_diffusion.infotext_from_plain_settings(named, "Easy Diffusion", size), "prompt")
    return None


def _find_json(texts: Mapping[str, str], size: tuple[int, int]) -> PictureText | None:
    """Read JSON where infotext is expected, and in XMP."""
    candidates = {carrier: texts.get(carrier, "") for carrier in COMMENT_CARRIERS}
    if comment := draw_things.comment_in_xmp(texts.get(XMP, "")):
        candidates[XMP] = comment
    for carrier, text in candidates.items():
        values = parse_object(text)
        if values is not None:
            return PictureText(infotext_from_json(values, size), carrier)
        if carrier == XMP and split_infotext(text).fields:
            return PictureText(text, carrier)
        if carrier != "Description" and text.lstrip().startswith('{"'):
            raise BadRecipe(f"its {carrier} is JSON that is cut short or damaged ({shorten(text)}), {NO_RECIPE}")
    return None


def _find_graph(texts: Mapping[str, str], size: tuple[int, int]) -> PictureText | None:
    if "prompt" not in texts and "workflow" not in texts:
        return None
    infotext = infotext_from_comfyui(texts, size)
    return None if infotext is None else PictureText(infotext, "prompt")


def _parse_chunk(texts: Mapping[str, str], chunk: str, program: str) -> JsonObject:
    values = parse_object(texts[chunk])
    if values is None:
        raise BadRecipe(f"the picture is by {program}, and its {chunk} is not JSON, {NO_RECIPE}")
    return values


def _refuse_unread_program(texts: Mapping[str, str]) -> None:
    """Refuse a picture of a program that is known, and whose metadata does not tell how to make it here."""
    named = "\n".join(text[:2_000] for name, text in texts.items() if name.lower() in PROGRAM_CHUNKS).lower()
    if MIDJOURNEY_JOB.search(texts.get("Description", "")[-2_000:]):
        named += "midjourney"
    for program, marks in UNREAD_PROGRAMS.items():
        if any(mark.lower() in named for mark in marks):
            raise BadRecipe(f"the picture is by {program}, whose settings velatura cannot use, {NO_RECIPE}")
    if any(parse_object(texts.get(chunk)) for chunk in ("prompt", "workflow")):
        raise BadRecipe(f"{GRAPH_REFUSAL}, {NO_RECIPE}")


def _unknown_json(values: JsonObject) -> BadRecipe:
    """Return the error for JSON that no reader knows, with the name of its program if it says one."""
    names = (values.get(key) for key in SOFTWARE_KEYS)
    program = next((name for name in names if isinstance(name, str) and name), None)
    keys = ", ".join(list(values)[:MAX_SHOWN_KEYS]) or "nothing"
    owner = f"JSON of {shorten(program)}" if program else "JSON of an unknown program"
    return BadRecipe(f"its metadata is {owner} (it has {shorten(keys)}), {NO_RECIPE}")


def _is_graph(values: JsonObject) -> bool:
    """Return True for a graph of ComfyUI: every node has a class_type, or it has nodes and links."""
    nodes = [cast("JsonObject", node) for node in values.values() if isinstance(node, dict)]
    return any("class_type" in node for node in nodes) or {"nodes", "links"} <= set(values)
