"""Routes for typing prompts: how long they are, and words that the base knows."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from velatura.library.entry import LibraryEntry
from velatura.server.models import TINY
from velatura.server.state import ReadyState
from velatura.tiny_world import TINY_VOCABULARY

router = APIRouter(prefix="/api/prompts", tags=["prompts"])

CountedText = Annotated[str, Field(max_length=100_000)]


class PromptTexts(BaseModel):
    """A prompt and a negative prompt, as they are typed."""

    model_config = ConfigDict(extra="forbid")

    prompt: CountedText = ""
    negative: CountedText = ""


class PromptLength(BaseModel):
    """Tokens of a prompt, and how many fit without one more chunk of 75."""

    tokens: int
    capacity: int


class PromptLengths(BaseModel):
    """Lengths of a prompt and a negative prompt; None if no base was ever open, whose tokenizer counts."""

    prompt: PromptLength | None
    negative: PromptLength | None


@router.post("/count")
def count_tokens(state: ReadyState, texts: PromptTexts) -> PromptLengths:
    """Count the tokens of a prompt and a negative prompt, as A1111 shows them."""
    counter = state.models.token_counter()
    if counter is None:
        return PromptLengths(prompt=None, negative=None)
    embeddings = {entry.name: _vector_count(entry) for entry in state.library.of_kind("embedding")}
    prompt = counter.count(texts.prompt, embeddings)
    negative = counter.count(texts.negative, embeddings, is_negative=True)
    return PromptLengths(prompt=PromptLength(**prompt._asdict()), negative=PromptLength(**negative._asdict()))


@router.get("/words")
def list_words(state: ReadyState) -> list[str]:
    """List the words that the open base was trained on, if they are few: those of the tiny base."""
    is_tiny = state.models.open_base_name == TINY
    return sorted(set(TINY_VOCABULARY.split())) if is_tiny else []


def _vector_count(entry: LibraryEntry) -> int:
    from velatura.sampling.resolve.token_count import vector_count

    return vector_count(entry.info.card)
