"""The four places where an overlay may change a base. Only this file registers forward hooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from velatura.errors import UnsupportedBase
from velatura.overlays.attention_layers import attention_layers, context_width
from velatura.overlays.hooks.context_hooks import ContextChange, ContextHook, KVInput
from velatura.overlays.hooks.embedding_strength import NEUTRAL_WORD, EmbeddingStrength, EmbeddingStrengthHook
from velatura.overlays.hooks.full_weight_hooks import FullWeightChange
from velatura.overlays.hooks.module_attributes import (
    HOOK_SLOT,
    OUR_HOOKS,
    OUTPUT_SLOT,
    Undo,
    exclude_from_copies,
    is_unwrapped,
    replace_forward,
    restore_forward,
)
from velatura.overlays.hooks.output_hooks import OutputChange, TimestepRecorder
from velatura.overlays.hooks.text_hooks import AestheticHook
from velatura.overlays.hooks.token_hooks import EmbeddingHook, TokenVectors, VectorSource, is_active, measure_vectors
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target


def hook_contexts(target: Target, width: int, change: ContextChange) -> Iterator[Undo]:
    """Change what K and V read in all attention layers of the target whose context has this width.

    All attention processors of diffusers call to_k and to_v, so hooks there work with any of them.

    Args:
        target: The model and the blocks in which the change acts.
        width: Features of the contexts.
        change: The change.

    Yields:
        One undo for each layer.
    """
    target.changes.append(change)
    for name, layer in target.attention_layers():
        check_kv_projections(name, layer)
        if context_width(layer) == width:
            on_measure = target.meter.add_context_layer(name, width)
            yield _context_slot(name, layer).add(ContextHook(change, target.group, on_measure))


def hook_outputs(layer: nn.Module, change: OutputChange) -> Iterator[Undo]:
    """Change a layer's output; several changes add up, and all are computed from the output of the bare layer."""
    yield vars(layer).setdefault(OUTPUT_SLOT, _OutputSlot(layer)).add(change)


def record_timesteps(unet: nn.Module, recorder: TimestepRecorder) -> Iterator[Undo]:
    """Tell a recorder the timesteps of each call of a UNet."""
    yield unet.register_forward_pre_hook(recorder.pre_hook, with_kwargs=True).remove
    yield exclude_from_copies(unet, recorder.pre_hook)


def guard_against_fusion(name: str, layer: nn.Module) -> Iterator[Undo]:
    """Refuse, now and at each later call, an attention layer whose projections are fused."""
    check_not_fused(name, layer)
    hook = partial(check_not_fused, name)
    yield layer.register_forward_pre_hook(hook).remove
    yield exclude_from_copies(layer, hook)


def check_not_fused(name: str, layer: nn.Module, *_arguments: object) -> None:
    """Refuse an attention layer whose projections are fused into one."""
    if getattr(layer, "fused_projections", False):
        raise UnsupportedBase(
            f"{name} computes Q, K and V in one fused projection, which overlays cannot change: "
            "call unfuse_qkv_projections() on the model first"
        )


def check_kv_projections(name: str, layer: nn.Module) -> None:
    """Refuse an attention layer that does not compute K and V in to_k and to_v alone."""
    check_not_fused(name, layer)
    if getattr(layer, "add_k_proj", None) is not None:
        raise UnsupportedBase(
            f"{name} has a second pair of K and V (add_k_proj), which overlays do not support: "
            "use a base without added projections"
        )


def record_contexts(model: nn.Module, callback: Callable[[str, nn.Module, Tensor], None]) -> Iterator[Undo]:
    """Call the callback with all contexts that attention layers read, before overlays change them.

    Args:
        model: The UNet.
        callback: Gets the name of the layer, the layer, and its context (batch, tokens, width).

    Yields:
        One undo for each layer.
    """

    def hook(name: str, layer: nn.Module, _projection: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        callback(name, layer, arguments[0])

    for name, layer in attention_layers(model):
        layer_hook = partial(hook, name, layer)
        yield layer.get_submodule("to_k").register_forward_pre_hook(layer_hook, prepend=True).remove


def hook_batch_size(unet: nn.Module, on_rows: Callable[[int], None]) -> Iterator[Undo]:
    """Tell before each call of a UNet how many rows its batch has."""

    def hook(_unet: nn.Module, arguments: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        on_rows(len(arguments[0] if arguments else named["sample"]))

    yield unet.register_forward_pre_hook(hook, with_kwargs=True).remove
    yield exclude_from_copies(unet, hook)


def hook_token_embeddings(
    target: Target, name: str, name_token_ids: Sequence[int], sources: Sequence[VectorSource], strength: LiveStrength
) -> Iterator[Undo]:
    """Let a name in texts stand for vectors. The token tables are not resized: new tokens have ids below 0.

    Args:
        target: A model with a text encoder of ours.
        name: The name.
        name_token_ids: Tokens of the name as ordinary text.
        sources: Return the current vectors (count, width), one source for each text encoder.
        strength: The strength in the text encoders.

    Yields:
        Undos.
    """
    text = target.text
    assert text
    tables = [cast("nn.Embedding", tower.model.get_input_embeddings()) for tower in text.encoders]
    on_named = target.meter.add_word(name, lambda: measure_vectors(sources, tables))
    token, unregister = text.token_registry.register(
        name, name_token_ids, len(sources[0]()), partial(is_active, strength), on_named
    )
    yield unregister
    neutral_token_id = text.token_ids(NEUTRAL_WORD)[0]
    for tower, table, source in zip(text.encoders, tables, sources, strict=True):
        token_vectors = TokenVectors(token.vector_ids, source)
        yield _hook_token_table(table, token_vectors)
        yield _hook_embedding_strength(tower.model, EmbeddingStrength(token_vectors, neutral_token_id, strength))


def hook_text_encoder(tower: nn.Module, change: AestheticHook) -> Iterator[Undo]:
    """Change the output of a text encoder, after each of its calls."""
    handle = tower.register_forward_hook(change.forward_hook, with_kwargs=True)
    yield handle.remove
    yield exclude_from_copies(tower, change.forward_hook)


def enable_dynamo_hook_guards() -> None:
    """Make torch.compile notice hooks that are registered or removed after a model was traced.

    By default dynamo has no guards on module hooks, and goes on using what it traced before. If dynamo is not imported,
    nothing is compiled yet and there is nothing to do.
    """
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.config.skip_nnmodule_hook_guards:
        dynamo.config.skip_nnmodule_hook_guards = False
        dynamo.reset()


def has_overlays(model: nn.Module) -> bool:
    """Return True if an overlay is attached to a model."""
    return any(OUR_HOOKS in vars(module) for module in model.modules())


def _hook_token_table(table: nn.Module, token_vectors: TokenVectors) -> Undo:
    """Replace a token table's forward by one that reads vectors too, and return the undo."""
    embedding_hook: EmbeddingHook = vars(table).get(HOOK_SLOT) or EmbeddingHook(table)
    if not embedding_hook.members:
        vars(table)[HOOK_SLOT] = embedding_hook
        embedding_hook.undos = [
            partial(vars(table).pop, HOOK_SLOT),
            replace_forward(table, embedding_hook.forward),
            exclude_from_copies(table, embedding_hook),
        ]
    return embedding_hook.add_member(token_vectors)


def _hook_embedding_strength(tower: nn.Module, embedding_strength: EmbeddingStrength) -> Undo:
    """Apply the strength of an embedding to a text encoder's output, and return the undo."""
    strength_hook: EmbeddingStrengthHook = vars(tower).get(HOOK_SLOT) or EmbeddingStrengthHook()
    if not strength_hook.members:
        vars(tower)[HOOK_SLOT] = strength_hook
        # prepended, so that aesthetics come last: their copies of the encoder apply these strengths themselves
        handle = tower.register_forward_hook(strength_hook.forward_hook, with_kwargs=True, prepend=True)
        strength_hook.undos = [
            partial(vars(tower).pop, HOOK_SLOT),
            handle.remove,
            exclude_from_copies(tower, strength_hook.forward_hook),
        ]
    return strength_hook.add_member(embedding_strength)


class _ContextSlot:
    """Changes in front of one attention layer, and the hooks that run them while there are any."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        self._name, self._layer = name, layer
        self._hooks: tuple[ContextHook, ...] = ()
        self._undos: list[Undo] = []

    def add(self, hook: ContextHook) -> Undo:
        """Add a change after the others, and return the undo."""
        self._hooks = (*self._hooks, hook)
        self._install()
        return partial(self._remove, hook)

    def _remove(self, hook: ContextHook) -> None:
        self._hooks = tuple(other for other in self._hooks if other is not hook)
        self._install()

    def _install(self) -> None:
        """Register all hooks again, on the projections that the layer has now."""
        while self._undos:
            self._undos.pop()()
        if not self._hooks:
            vars(self._layer).pop(HOOK_SLOT, None)
            return
        kv_input = KVInput(self._layer, self._hooks)
        for projection, project in ((kv_input.to_k, kv_input.project_k), (kv_input.to_v, kv_input.project_v)):
            if any(hook.change.is_affine for hook in self._hooks) and is_unwrapped(projection):
                projection.forward = project
                self._undos.append(partial(restore_forward, projection, project))
        self._undos.append(kv_input.close)
        hooks = (
            (kv_input.to_k, kv_input.k_pre_hook),
            (kv_input.to_v, kv_input.v_pre_hook),
            (self._layer, partial(self._check_layer, kv_input)),
        )
        for module, hook in hooks:
            self._undos += [module.register_forward_pre_hook(hook).remove, exclude_from_copies(module, hook)]

    def _check_layer(self, kv_input: KVInput, layer: nn.Module, _arguments: tuple[object, ...]) -> None:
        """Check before each call that the layer still computes K and V in the projections with our hooks."""
        check_kv_projections(self._name, layer)
        if layer.to_k is not kv_input.to_k or layer.to_v is not kv_input.to_v:  # for instance after peft wrapped them
            self._install()


class _OutputSlot:
    """Changes of one layer's output, and the hook that runs them while there are any."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._changes: tuple[OutputChange, ...] = ()
        self._undos: list[Undo] = []

    def add(self, change: OutputChange) -> Undo:
        """Add a change after the others, and return the undo."""
        self._install((*self._changes, change))
        return partial(self._remove, change)

    def _remove(self, change: OutputChange) -> None:
        self._install(tuple(other for other in self._changes if other is not change))

    def _install(self, changes: tuple[OutputChange, ...]) -> None:
        """Register a forward hook; for a single full difference replace the layer's forward instead."""
        self._changes = changes
        while self._undos:
            self._undos.pop()()
        full_change = self._single_full_change()
        if not changes:
            vars(self._layer).pop(OUTPUT_SLOT, None)
        elif full_change and full_change.has_plain_forward(self._layer):
            self._undos += [
                replace_forward(self._layer, self._full_weight_forward),
                exclude_from_copies(self._layer, self),
            ]
        else:
            # prepended, so that hooks of other programs see the output with overlays
            handle = self._layer.register_forward_hook(self._add_changes, prepend=True)
            self._undos += [handle.remove, exclude_from_copies(self._layer, self._add_changes)]

    def _single_full_change(self) -> FullWeightChange | None:
        change = self._changes[0] if len(self._changes) == 1 else None
        return change if isinstance(change, FullWeightChange) else None

    def _full_weight_forward(self, inputs: Tensor) -> Tensor:
        """Compute the layer with its full difference; without it, if a wrapper calls this after detaching."""
        change = self._single_full_change()
        if change is None:
            return type(self._layer).forward(self._layer, inputs)
        return change.layer_output(self._layer, inputs)

    def _add_changes(self, layer: Any, arguments: tuple[Tensor, ...], base_output: Tensor) -> Tensor:
        output = base_output
        for change in self._changes:
            output = change.add(layer, arguments[0], base_output, output)
        return output


def _context_slot(name: str, layer: nn.Module) -> _ContextSlot:
    """Return a layer's slot, which is an attribute of the layer, so that both are freed together."""
    return vars(layer).setdefault(HOOK_SLOT, _ContextSlot(name, layer))
