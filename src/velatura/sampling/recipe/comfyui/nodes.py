"""The nodes of ComfyUI and of popular extensions: what their outputs are, and what they pass on.

Names of nodes, inputs and outputs are those that ComfyUI writes into pictures.
"""

from typing import NamedTuple


class NodeKind(NamedTuple):
    """Facts about a kind of node.

    Attributes:
        outputs: Types of its outputs in their order, with spaces between; "*" is any type. Empty: unknown.
        passes: Names of the inputs that go through to the outputs, in the outputs' order; "-" for an output that the
            node makes itself.
        is_harmless: True if what it does to the value changes no picture.
    """

    outputs: str = ""
    passes: str = ""
    is_harmless: bool = False


# Nodes whose texts call LoRAs by tags; elsewhere a tag is only letters
TAG_LOADERS = frozenset({"LoraTagLoader", "ImpactWildcardEncode", "Lora Loader (LoraManager)"})
INSIDE_LOADER = -1  # stands for the slot of the text encoder that a loader with prompts uses itself
CONDITIONING_NAMES = ("positive", "negative")  # the two sides of a prompt, which are both of the type CONDITIONING

# Names under which a node of an unknown kind takes the value that it passes on, by type
INPUT_NAMES = {
    "model": ("model",),
    "clip": ("clip",),
    "vae": ("vae", "optional_vae"),
    "latent": ("latent", "samples", "latent_image", "latents"),
    "image": ("image", "images", "pixels"),
    "lora_stack": ("lora_stack", "optional_lora_stack"),
}

SAMPLED = NodeKind("LATENT")
MODEL_PATCH = NodeKind("MODEL", "model")
HARMLESS_MODEL_PATCH = NodeKind("MODEL", "model", is_harmless=True)
CHANGES_CONDITIONING = NodeKind("CONDITIONING", "conditioning")
CHANGES_BOTH_SIDES = NodeKind("CONDITIONING CONDITIONING", "positive negative")
CHANGES_IMAGE = NodeKind("IMAGE", "image")
CHANGES_LATENT = NodeKind("LATENT", "samples")

EFFICIENT_SAMPLER = NodeKind(
    "MODEL CONDITIONING CONDITIONING LATENT VAE IMAGE", "model positive negative - -", is_harmless=True
)
EASY_LOADER = NodeKind("* MODEL VAE CLIP * * LATENT")

NODE_KINDS = {
    # Loaders
    "CheckpointLoaderSimple": NodeKind("MODEL CLIP VAE"),
    "CheckpointLoader": NodeKind("MODEL CLIP VAE"),
    "DiffusersLoader": NodeKind("MODEL CLIP VAE"),
    "unCLIPCheckpointLoader": NodeKind("MODEL CLIP VAE CLIP_VISION"),
    "ImageOnlyCheckpointLoader": NodeKind("MODEL CLIP_VISION VAE"),
    "UNETLoader": NodeKind("MODEL"),
    "CLIPLoader": NodeKind("CLIP"),
    "DualCLIPLoader": NodeKind("CLIP"),
    "TripleCLIPLoader": NodeKind("CLIP"),
    "VAELoader": NodeKind("VAE"),
    "LoraLoader": NodeKind("MODEL CLIP"),
    "LoraLoaderModelOnly": NodeKind("MODEL"),
    "HypernetworkLoader": NodeKind("MODEL"),
    "LoraTagLoader": NodeKind("MODEL CLIP *"),
    "ImpactWildcardEncode": NodeKind("MODEL CLIP CONDITIONING *"),
    "Power Lora Loader (rgthree)": NodeKind("MODEL CLIP"),
    "Lora Loader Stack (rgthree)": NodeKind("MODEL CLIP"),
    "CR Apply LoRA Stack": NodeKind("MODEL CLIP *"),
    "Efficient Loader": NodeKind("MODEL CONDITIONING CONDITIONING LATENT VAE CLIP DEPENDENCIES"),
    "easy fullLoader": EASY_LOADER,
    "easy a1111Loader": EASY_LOADER,
    "easy comfyLoader": EASY_LOADER,
    # Texts
    "CLIPTextEncode": NodeKind("CONDITIONING"),
    "CLIPTextEncodeSDXL": NodeKind("CONDITIONING"),
    "CLIPTextEncodeSDXLRefiner": NodeKind("CONDITIONING"),
    "CLIPSetLastLayer": NodeKind("CLIP"),
    "ConditioningCombine": NodeKind("CONDITIONING"),
    "ConditioningConcat": NodeKind("CONDITIONING"),
    "ConditioningAverage": NodeKind("CONDITIONING"),
    "ConditioningZeroOut": NodeKind("CONDITIONING"),
    # Changes of conditionings that velatura does not make
    "ConditioningSetTimestepRange": CHANGES_CONDITIONING,
    "ConditioningSetArea": CHANGES_CONDITIONING,
    "ConditioningSetAreaPercentage": CHANGES_CONDITIONING,
    "ConditioningSetAreaStrength": CHANGES_CONDITIONING,
    "ConditioningSetMask": CHANGES_CONDITIONING,
    "ControlNetApply": CHANGES_CONDITIONING,
    "FluxGuidance": CHANGES_CONDITIONING,
    "StyleModelApply": CHANGES_CONDITIONING,
    "unCLIPConditioning": CHANGES_CONDITIONING,
    "ReferenceLatent": CHANGES_CONDITIONING,
    "GLIGENTextBoxApply": NodeKind("CONDITIONING", "conditioning_to"),
    "ControlNetApplyAdvanced": CHANGES_BOTH_SIDES,
    "ControlNetApplySD3": CHANGES_BOTH_SIDES,
    "ControlNetInpaintingAliMamaApply": CHANGES_BOTH_SIDES,
    "ACN_AdvancedControlNetApply": NodeKind("CONDITIONING CONDITIONING MODEL", "positive negative model_optional"),
    "InpaintModelConditioning": NodeKind("CONDITIONING CONDITIONING LATENT", "positive negative -"),
    # Changes of the model that velatura does not make
    "FreeU": MODEL_PATCH,
    "FreeU_V2": MODEL_PATCH,
    "RescaleCFG": MODEL_PATCH,
    "PerturbedAttentionGuidance": MODEL_PATCH,
    "SelfAttentionGuidance": MODEL_PATCH,
    "HyperTile": MODEL_PATCH,
    "PatchModelAddDownscale": MODEL_PATCH,
    "ModelSamplingContinuousEDM": MODEL_PATCH,
    "ModelSamplingContinuousV": MODEL_PATCH,
    "ModelSamplingSD3": MODEL_PATCH,
    "ModelSamplingAuraFlow": MODEL_PATCH,
    "ModelSamplingFlux": MODEL_PATCH,
    "DifferentialDiffusion": MODEL_PATCH,
    "TomePatchModel": MODEL_PATCH,
    "IPAdapterAdvanced": MODEL_PATCH,
    "IPAdapter": MODEL_PATCH,
    "IPAdapterApply": MODEL_PATCH,
    "ModelMergeSimple": NodeKind("MODEL", "model1"),
    "ModelMergeBlocks": NodeKind("MODEL", "model1"),
    "CLIPMergeSimple": NodeKind("CLIP", "clip1"),
    "ModelSamplingDiscrete": NodeKind("MODEL"),
    "ModelComputeDtype": HARMLESS_MODEL_PATCH,
    "TorchCompileModel": HARMLESS_MODEL_PATCH,
    # Samplers
    "KSampler": SAMPLED,
    "KSamplerAdvanced": SAMPLED,
    "SamplerCustom": NodeKind("LATENT LATENT"),
    "SamplerCustomAdvanced": NodeKind("LATENT LATENT"),
    "KSampler (Efficient)": EFFICIENT_SAMPLER,
    "KSampler Adv. (Efficient)": EFFICIENT_SAMPLER,
    "easy kSampler": NodeKind("* IMAGE MODEL CONDITIONING CONDITIONING LATENT"),
    "easy fullkSampler": NodeKind("* IMAGE MODEL CONDITIONING CONDITIONING LATENT"),
    "KSamplerSelect": NodeKind("SAMPLER"),
    "BasicScheduler": NodeKind("SIGMAS"),
    "KarrasScheduler": NodeKind("SIGMAS"),
    "ExponentialScheduler": NodeKind("SIGMAS"),
    "PolyexponentialScheduler": NodeKind("SIGMAS"),
    "BetaSamplingScheduler": NodeKind("SIGMAS"),
    "AlignYourStepsScheduler": NodeKind("SIGMAS"),
    "SplitSigmas": NodeKind("SIGMAS SIGMAS", "sigmas sigmas"),
    "FlipSigmas": NodeKind("SIGMAS", "sigmas"),
    "RandomNoise": NodeKind("NOISE"),
    "DisableNoise": NodeKind("NOISE"),
    "CFGGuider": NodeKind("GUIDER"),
    "BasicGuider": NodeKind("GUIDER"),
    "DualCFGGuider": NodeKind("GUIDER"),
    # Latents and images
    "EmptyLatentImage": NodeKind("LATENT"),
    "EmptySD3LatentImage": NodeKind("LATENT"),
    "VAEEncode": NodeKind("LATENT"),
    "VAEEncodeTiled": NodeKind("LATENT"),
    "VAEEncodeForInpaint": NodeKind("LATENT"),
    "SetLatentNoiseMask": NodeKind("LATENT"),
    "LatentUpscale": NodeKind("LATENT"),
    "LatentUpscaleBy": NodeKind("LATENT"),
    "RepeatLatentBatch": NodeKind("LATENT"),
    "LatentFromBatch": NodeKind("LATENT"),
    "LatentRotate": CHANGES_LATENT,
    "LatentFlip": CHANGES_LATENT,
    "LatentCrop": CHANGES_LATENT,
    "LatentComposite": NodeKind("LATENT", "samples_to"),
    "LatentCompositeMasked": NodeKind("LATENT", "destination"),
    "LatentBlend": NodeKind("LATENT", "samples1"),
    "LoadLatent": NodeKind("LATENT"),
    "VAEDecode": NodeKind("IMAGE"),
    "VAEDecodeTiled": NodeKind("IMAGE"),
    "LoadImage": NodeKind("IMAGE MASK"),
    "ImageScale": NodeKind("IMAGE"),
    "ImageScaleBy": NodeKind("IMAGE"),
    "ImageUpscaleWithModel": NodeKind("IMAGE"),
    "ImageSharpen": CHANGES_IMAGE,
    "ImageBlur": CHANGES_IMAGE,
    "ImageInvert": CHANGES_IMAGE,
    "ImageFromBatch": NodeKind("IMAGE", "image", is_harmless=True),
    "RepeatImageBatch": NodeKind("IMAGE"),
    "ImagePadForOutpaint": NodeKind("IMAGE MASK", "image -"),
    "ImageCompositeMasked": NodeKind("IMAGE", "destination"),
}

# Nodes that bundle values: names of the inputs that hold a bundle, and the values at the outputs ("pipe": the bundle)
CONTEXT_FIELDS = "pipe model clip vae positive negative latent image seed"
PIPES = {
    "ToBasicPipe": ("", "pipe"),
    "FromBasicPipe": ("basic_pipe", "model clip vae positive negative"),
    "FromBasicPipe_v2": ("basic_pipe", "pipe model clip vae positive negative"),
    "EditBasicPipe": ("basic_pipe", "pipe"),
    "Context (rgthree)": ("base_ctx", CONTEXT_FIELDS),
    "Context Big (rgthree)": ("base_ctx", CONTEXT_FIELDS),
    "easy pipeIn": ("pipe", "pipe"),
    "easy pipeOut": ("pipe", "pipe model positive negative latent vae clip image seed"),
    "easy preSampling": ("pipe", "pipe"),
    "easy preSamplingAdvanced": ("pipe", "pipe"),
}


class LoaderTexts(NamedTuple):
    """A loader that also has both prompts.

    Attributes:
        outputs: Names of the prompts at its outputs; a bundle (pipe) at output 0 has both.
        clip_skip: Name of the input with the layer of the text encoder.
    """

    outputs: dict[int, str]
    clip_skip: str = "clip_skip"


EASY_TEXTS = LoaderTexts({0: "", 4: "positive", 5: "negative"})
LOADERS_WITH_TEXTS = {
    "Efficient Loader": LoaderTexts({1: "positive", 2: "negative"}),
    "easy fullLoader": EASY_TEXTS,
    "easy a1111Loader": EASY_TEXTS,
    "easy comfyLoader": EASY_TEXTS,
}

# Nodes of SamplerCustom that are one sampler with its own options, and that sampler
SAMPLER_OPTIONS = {
    "SamplerEulerAncestral": "euler_ancestral",
    "SamplerDPMPP_2M_SDE": "dpmpp_2m_sde",
    "SamplerDPMPP_3M_SDE": "dpmpp_3m_sde",
    "SamplerDPMPP_SDE": "dpmpp_sde",
    "SamplerDPMPP_2S_Ancestral": "dpmpp_2s_ancestral",
    "SamplerLMS": "lms",
}
