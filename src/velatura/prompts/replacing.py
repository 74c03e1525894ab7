"""Prompts with words replaced or brought into another order, for the axes of a grid."""

from collections.abc import Sequence

from velatura.errors import BadRecipe


def replace_words(prompt: str, negative: str, old: str, new: str) -> tuple[str, str]:
    """Both prompts with all occurrences of some words replaced; raises BadRecipe where there are none."""
    if not old:
        raise BadRecipe("the first value of words to replace is empty; write the words that are to be replaced")
    if old not in prompt and old not in negative:
        raise BadRecipe(f"neither prompt has {old!r} in it; the first value must be the words that are replaced")
    return prompt.replace(old, new), negative.replace(old, new)


def reorder_words(prompt: str, words: Sequence[str]) -> str:
    """The prompt with words of it changed about into this order; raises BadRecipe if one is missing."""
    gaps: list[str] = []
    rest = prompt
    for word in sorted(words, key=prompt.find):
        before, found, rest = rest.partition(word) if word else (rest, "", "")
        if not found:
            raise BadRecipe(
                f"the prompt has no {word!r} left to bring into order; name words that stand in it, once each"
            )
        gaps.append(before)
    return "".join(f"{before}{word}" for before, word in zip(gaps, words, strict=True)) + rest
