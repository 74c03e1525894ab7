"""The places where an overlay may touch a base: the only file that hangs hooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from velatura.errors import UnsupportedBase
from velatura.overlays.affine import foldable
from velatura.overlays.changed_weights import WholeChange
from velatura.overlays.conditioned import TunedConditioning
from velatura.overlays.contexts import ContextChange, Link, Reader
from velatura.overlays.copies import OURS, OUTPUTS, SEAM, copied_without
from velatura.overlays.layers import attention_layers, context_width
from velatura.overlays.outputs import OutputChange
from velatura.overlays.splice import Source, Splice, Vectors, acts, lengths
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target
from velatura.overlays.weighed import NEUTRAL, WeighedWord, WeighedWords

Undo = Callable[[], None]
Change = Callable[[Tensor], Tensor]


def on_contexts(target: Target, width: int, change: ContextChange) -> Iterator[Undo]:
    """Change what K and V read in every attention layer of the target whose context has this width.

    Hooks on to_k and to_v see what any attention processor reads, so the user's own processor stays.
    """
    target.changes.append(change)
    for name, layer in target.attention_layers():
        refuse_bypasses(name, layer)
        if context_width(layer) == width:
            yield _seam(name, layer).add(Link(change, target.group, target.listener.expect(name, width)))


def on_outputs(layer: nn.Module, change: OutputChange) -> Iterator[Undo]:
    """Change what a layer computes; several changes add up, each made from what the bare layer made."""
    yield vars(layer).setdefault(OUTPUTS, _OutputSeam(layer)).add(change)


def while_apart(name: str, layer: nn.Module) -> Iterator[Undo]:
    """Refuse, now and at each call, an attention layer that computes elsewhere than in its projections."""
    refuse_fusion(name, layer)
    hook = partial(refuse_fusion, name)
    yield layer.register_forward_pre_hook(hook).remove
    yield copied_without(layer, hook)


def refuse_fusion(name: str, layer: nn.Module, *_arguments: object) -> None:
    """Refuse a layer whose projections are fused into one."""
    if getattr(layer, "fused_projections", False):
        raise UnsupportedBase(
            f"{name} computes Q, K and V in one fused product, past the reach of overlays: "
            "call unfuse_qkv_projections() on the model first"
        )


def refuse_bypasses(name: str, layer: nn.Module) -> None:
    """Refuse a layer whose K and V are computed elsewhere than in to_k and to_v."""
    refuse_fusion(name, layer)
    if getattr(layer, "add_k_proj", None) is not None:
        raise UnsupportedBase(
            f"{name} has a second pair of K and V (add_k_proj), which overlays do not cover yet: "
            "use a base without added projections"
        )


def record_contexts(model: nn.Module, callback: Callable[[str, nn.Module, Tensor], None]) -> Iterator[Undo]:
    """Tell the callback of every context that an attention layer is about to read, before overlays change it."""

    def hook(name: str, layer: nn.Module, _projection: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        callback(name, layer, arguments[0])

    for name, layer in attention_layers(model):
        heard = partial(hook, name, layer)
        yield layer.get_submodule("to_k").register_forward_pre_hook(heard, prepend=True).remove


def on_words(
    target: Target, name: str, spelling: Sequence[int], vectors: Sequence[Source], strength: LiveStrength
) -> Iterator[Undo]:
    """Let a name in texts stand for vectors, which are read whenever a text is encoded; one source for each tower.

    The towers' tables are left as they are: tokens that none of them has are read from the vectors.
    """
    text = target.words
    assert text
    tables = [cast("nn.Embedding", tower.model.get_input_embeddings()) for tower in text.towers]
    told = target.listener.expect_word(name, lambda: lengths(vectors, tables))
    word, take = text.glossary.give(name, spelling, len(vectors[0]()), partial(acts, strength), told)
    yield take
    neutral = text.token_ids(NEUTRAL)[0]
    for tower, table, source in zip(text.towers, tables, vectors, strict=True):
        given = Vectors(word.vectors, source)
        yield _splice(table, given)
        yield _weigh(tower.model, WeighedWord(given, neutral, strength))


def on_conditioning(tower: nn.Module, change: TunedConditioning) -> Iterator[Undo]:
    """Change what a text tower says of texts; the change is asked after each of its calls."""
    hung = tower.register_forward_hook(change.said, with_kwargs=True)
    yield hung.remove
    yield copied_without(tower, change.said)


def heed_hooks_when_compiled() -> None:
    """Make torch.compile notice hooks that come and go after a model was traced.

    Dynamo skips guards on module hooks unless told otherwise, and what it traced before stays as it was. Without dynamo
    nothing is compiled and nothing is to be done; once told, its guards suffice.
    """
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.config.skip_nnmodule_hook_guards:
        dynamo.config.skip_nnmodule_hook_guards = False
        dynamo.reset()


def is_changed(model: nn.Module) -> bool:
    """Whether an overlay touches a model."""
    return any(OURS in vars(each) for each in model.modules())


def _splice(table: nn.Module, vectors: Vectors) -> Undo:
    """Read vectors beside a table, and give back what ends that; the table's forward is ours while there are any."""
    splice: Splice = vars(table).get(SEAM) or Splice(table)
    if not splice.members:
        vars(table)[SEAM] = splice
        splice.undos = [partial(vars(table).pop, SEAM), _put(table, splice.forward), copied_without(table, splice)]
    return splice.join(vectors)


def _weigh(tower: nn.Module, word: WeighedWord) -> Undo:
    """Weigh a word in what a tower says, and give back what ends that."""
    words: WeighedWords = vars(tower).get(SEAM) or WeighedWords()
    if not words.members:
        vars(tower)[SEAM] = words
        # first, so that aesthetics, which weigh words in their copies of the tower, have the last say
        hung = tower.register_forward_hook(words.said, with_kwargs=True, prepend=True)
        words.undos = [partial(vars(tower).pop, SEAM), hung.remove, copied_without(tower, words.said)]
    return words.join(word)


class _Seam:
    """One attention layer's seam: the links that lie before it, and the hooks that lead there while there are any."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        self._name, self._layer = name, layer
        self._links: tuple[Link, ...] = ()
        self._undos: list[Undo] = []

    def add(self, link: Link) -> Undo:
        """Put a link behind the others, and give back what takes it out again."""
        self._links = (*self._links, link)
        self._hang()
        return partial(self._remove, link)

    def _remove(self, link: Link) -> None:
        self._links = tuple(each for each in self._links if each is not link)
        self._hang()

    def _hang(self) -> None:
        """Hang afresh on the layer's projections as they are now."""
        while self._undos:
            self._undos.pop()()
        if not self._links:
            vars(self._layer).pop(SEAM, None)
            return
        reader = Reader(self._layer, self._links)
        for projection, project in ((reader.to_k, reader.project_k), (reader.to_v, reader.project_v)):
            if any(link.change.is_affine for link in self._links) and _free(projection):
                projection.forward = project
                self._undos.append(partial(_give_back, projection, project))
        self._undos.append(reader.close)
        hooks = (
            (reader.to_k, reader.before_k),
            (reader.to_v, reader.before_v),
            (self._layer, partial(self._look, reader)),
        )
        for module, hook in hooks:
            self._undos += [module.register_forward_pre_hook(hook).remove, copied_without(module, hook)]

    def _look(self, reader: Reader, layer: nn.Module, _arguments: tuple[object, ...]) -> None:
        """See before each call that the layer still computes K and V where we hang."""
        refuse_bypasses(self._name, layer)
        if layer.to_k is not reader.to_k or layer.to_v is not reader.to_v:  # a LoRA was loaded around them, say
            self._hang()


class _OutputSeam:
    """What lies behind one layer, and the hook that leads there while anything does."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._changes: tuple[OutputChange, ...] = ()
        self._undos: list[Undo] = []

    def add(self, change: OutputChange) -> Undo:
        """Put a change behind the others, and give back what takes it out again."""
        self._hang((*self._changes, change))
        return partial(self._remove, change)

    def _remove(self, change: OutputChange) -> None:
        self._hang(tuple(each for each in self._changes if each is not change))

    def _hang(self, changes: tuple[OutputChange, ...]) -> None:
        """Hang behind the layer, or in its place where one change alone can tell all that it makes."""
        self._changes = changes
        while self._undos:
            self._undos.pop()()
        if not changes:
            vars(self._layer).pop(OUTPUTS, None)
        elif len(changes) == 1 and isinstance(changes[0], WholeChange) and changes[0].replaces(self._layer):
            self._undos += [_put(self._layer, self._whole), copied_without(self._layer, self)]
        else:
            # first of all that others hang there: they hear what the layer makes with overlays on
            hung = self._layer.register_forward_hook(self._change, prepend=True)
            self._undos += [hung.remove, copied_without(self._layer, self._change)]

    def _whole(self, read: Tensor) -> Tensor:
        """What the layer makes with the one change that lies there; without it, if somebody wrapped us and goes on."""
        alone = self._changes[0] if len(self._changes) == 1 else None
        if not isinstance(alone, WholeChange):
            return type(self._layer).forward(self._layer, read)
        return alone.made(self._layer, read)

    def _change(self, layer: Any, arguments: tuple[Tensor, ...], made: Tensor) -> Tensor:
        so_far = made
        for change in self._changes:
            so_far = change.add(layer, arguments[0], made, so_far)
        return so_far


def _free(projection: nn.Module) -> bool:
    """Whether nobody has put a forward of their own on a projection."""
    return foldable(projection) and "forward" not in vars(projection)


def _put(module: nn.Module, forward: Change) -> Undo:
    """Put a forward of ours on a module, and give back what restores the one that was there."""
    before = vars(module).get("forward")
    module.forward = forward

    def undo() -> None:
        _give_back(module, forward)
        if before is not None and "forward" not in vars(module):
            module.forward = before

    return undo


def _give_back(projection: nn.Module, project: Change) -> None:
    """Take our forward off a projection, unless somebody has wrapped theirs around it since: theirs is left alone."""
    if vars(projection).get("forward") == project:
        del projection.forward


def _seam(name: str, layer: nn.Module) -> _Seam:
    """The seam of a layer, kept by the layer itself so that both go together."""
    return vars(layer).setdefault(SEAM, _Seam(name, layer))
