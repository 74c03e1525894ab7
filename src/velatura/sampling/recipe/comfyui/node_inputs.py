"""The inputs of known nodes: in which order the editor saves their values, and which inputs velatura does not read."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from velatura.files import is_unset


class NodeInputs(NamedTuple):
    """Inputs of a kind of node.

    Attributes:
        widgets: Names of its values, in the order in which the editor saves them, with spaces between.
        links: Names of its other inputs, which are connected.
    """

    widgets: str = ""
    links: str = ""


SIDES = "positive negative"
SAMPLER_LINKS = f"model {SIDES} latent_image"
KSAMPLER = "seed steps cfg sampler_name scheduler denoise"
ADVANCED_KSAMPLER = (
    "add_noise noise_seed steps cfg sampler_name scheduler start_at_step end_at_step return_with_leftover_noise"
)
TILES = "tile_size overlap temporal_size temporal_overlap"

# Of ComfyUI, and of extensions whose inputs are known completely
NODE_INPUTS = {
    "CheckpointLoaderSimple": NodeInputs("ckpt_name"),
    "CheckpointLoader": NodeInputs("config_name ckpt_name"),
    "unCLIPCheckpointLoader": NodeInputs("ckpt_name"),
    "ImageOnlyCheckpointLoader": NodeInputs("ckpt_name"),
    "DiffusersLoader": NodeInputs("model_path"),
    "UNETLoader": NodeInputs("unet_name weight_dtype"),
    "CLIPLoader": NodeInputs("clip_name type device"),
    "DualCLIPLoader": NodeInputs("clip_name1 clip_name2 type device"),
    "VAELoader": NodeInputs("vae_name"),
    "LoraLoader": NodeInputs("lora_name strength_model strength_clip", "model clip"),
    "LoraLoaderModelOnly": NodeInputs("lora_name strength_model", "model"),
    "HypernetworkLoader": NodeInputs("hypernetwork_name strength", "model"),
    "LoraTagLoader": NodeInputs("text", "model clip"),
    "CLIPTextEncode": NodeInputs("text", "clip"),
    "CLIPTextEncodeSDXL": NodeInputs("width height crop_w crop_h target_width target_height text_g text_l", "clip"),
    "CLIPTextEncodeSDXLRefiner": NodeInputs("ascore width height text", "clip"),
    "BNK_CLIPTextEncodeAdvanced": NodeInputs("text token_normalization weight_interpretation", "clip"),
    "CLIPSetLastLayer": NodeInputs("stop_at_clip_layer", "clip"),
    "ConditioningCombine": NodeInputs(links="conditioning_1 conditioning_2"),
    "ConditioningConcat": NodeInputs(links="conditioning_to conditioning_from"),
    "ConditioningAverage": NodeInputs("conditioning_to_strength", "conditioning_to conditioning_from"),
    "ConditioningZeroOut": NodeInputs(links="conditioning"),
    "ConditioningSetTimestepRange": NodeInputs("start end", "conditioning"),
    "ControlNetApply": NodeInputs("strength", "conditioning control_net image"),
    "ControlNetApplyAdvanced": NodeInputs("strength start_percent end_percent", f"{SIDES} control_net image vae"),
    "ModelSamplingDiscrete": NodeInputs("sampling zsnr", "model"),
    "ModelComputeDtype": NodeInputs("dtype", "model"),
    "TorchCompileModel": NodeInputs("backend", "model"),
    "KSampler": NodeInputs(KSAMPLER, SAMPLER_LINKS),
    "KSamplerAdvanced": NodeInputs(ADVANCED_KSAMPLER, SAMPLER_LINKS),
    "KSampler (Efficient)": NodeInputs(f"{KSAMPLER} preview_method vae_decode", f"{SAMPLER_LINKS} optional_vae script"),
    "KSampler Adv. (Efficient)": NodeInputs(
        f"{ADVANCED_KSAMPLER} preview_method vae_decode", f"{SAMPLER_LINKS} optional_vae script"
    ),
    "Efficient Loader": NodeInputs(
        "ckpt_name vae_name clip_skip lora_name lora_model_strength lora_clip_strength positive negative "
        "token_normalization weight_interpretation empty_latent_width empty_latent_height batch_size",
        "lora_stack cnet_stack",
    ),
    "SamplerCustom": NodeInputs("add_noise noise_seed cfg", f"{SAMPLER_LINKS} sampler sigmas"),
    "SamplerCustomAdvanced": NodeInputs(links="noise guider sampler sigmas latent_image"),
    "RandomNoise": NodeInputs("noise_seed"),
    "CFGGuider": NodeInputs("cfg", f"model {SIDES}"),
    "BasicGuider": NodeInputs(links="model conditioning"),
    "KSamplerSelect": NodeInputs("sampler_name"),
    "SamplerEulerAncestral": NodeInputs("eta s_noise"),
    "SamplerDPMPP_2M_SDE": NodeInputs("solver_type eta s_noise noise_device"),
    "SamplerDPMPP_3M_SDE": NodeInputs("eta s_noise noise_device"),
    "SamplerDPMPP_SDE": NodeInputs("eta s_noise r noise_device"),
    "SamplerDPMPP_2S_Ancestral": NodeInputs("eta s_noise"),
    "SamplerLMS": NodeInputs("order"),
    "BasicScheduler": NodeInputs("scheduler steps denoise", "model"),
    "KarrasScheduler": NodeInputs("steps sigma_max sigma_min rho"),
    "ExponentialScheduler": NodeInputs("steps sigma_max sigma_min"),
    "PolyexponentialScheduler": NodeInputs("steps sigma_max sigma_min rho"),
    "BetaSamplingScheduler": NodeInputs("steps alpha beta", "model"),
    "AlignYourStepsScheduler": NodeInputs("model_type steps denoise"),
    "SDTurboScheduler": NodeInputs("steps denoise", "model"),
    "EmptyLatentImage": NodeInputs("width height batch_size"),
    "EmptySD3LatentImage": NodeInputs("width height batch_size"),
    "VAEEncode": NodeInputs(links="pixels vae"),
    "VAEEncodeTiled": NodeInputs(TILES, "pixels vae"),
    "VAEEncodeForInpaint": NodeInputs("grow_mask_by", "pixels vae mask"),
    "InpaintModelConditioning": NodeInputs("noise_mask", f"{SIDES} vae pixels mask"),
    "SetLatentNoiseMask": NodeInputs(links="samples mask"),
    "LatentUpscale": NodeInputs("upscale_method width height crop", "samples"),
    "LatentUpscaleBy": NodeInputs("upscale_method scale_by", "samples"),
    "RepeatLatentBatch": NodeInputs("amount", "samples"),
    "LatentFromBatch": NodeInputs("batch_index length", "samples"),
    "VAEDecode": NodeInputs(links="samples vae"),
    "VAEDecodeTiled": NodeInputs(TILES, "samples vae"),
    "LoadImage": NodeInputs("image upload"),
    "ImageScale": NodeInputs("upscale_method width height crop", "image"),
    "ImageScaleBy": NodeInputs("upscale_method scale_by", "image"),
    "ImageUpscaleWithModel": NodeInputs(links="upscale_model image"),
    "UpscaleModelLoader": NodeInputs("model_name"),
    "ImageFromBatch": NodeInputs("batch_index length", "image"),
    "RepeatImageBatch": NodeInputs("amount", "image"),
    "StringConcatenate": NodeInputs("string_a string_b delimiter"),
    "PrimitiveInt": NodeInputs("value"),
    "PrimitiveFloat": NodeInputs("value"),
    "PrimitiveString": NodeInputs("value"),
    "PrimitiveStringMultiline": NodeInputs("value"),
    "Text Multiline": NodeInputs("text"),
}
# Inputs that the editor or an extension of it adds to many nodes, and that no node reads
EDITOR_INPUTS = frozenset({"control_after_generate", "choose file to upload", "speak_and_recognation"})
# Inputs that velatura does not read, and the value with which they change nothing; None: no value
UNREAD_INPUTS: Mapping[str, Mapping[str, object]] = {
    "KSampler (Efficient)": {"script": None},
    "KSampler Adv. (Efficient)": {"script": None},
    "Efficient Loader": {"cnet_stack": None, "token_normalization": "none"},
    "BNK_CLIPTextEncodeAdvanced": {"token_normalization": "none"},
    "SamplerDPMPP_SDE": {"r": 0.5},
    "SamplerLMS": {"order": 4},
}


def find_unread_inputs(kind: str, inputs: Mapping[str, object]) -> Iterator[str]:
    """Yield the names of inputs that velatura does not know, or knows and does not read; none of an unknown kind.

    Args:
        kind: The kind of the node.
        inputs: Its inputs, which are values or links.
    """
    if kind not in NODE_INPUTS:
        return
    known = {*NODE_INPUTS[kind].widgets.split(), *NODE_INPUTS[kind].links.split(), *EDITOR_INPUTS}
    unread = UNREAD_INPUTS.get(kind, {})
    for name, value in inputs.items():
        if (name in unread and value != unread[name]) or (name not in known and not is_unset(value)):
            yield name
