"""Whole graphs. Expected values are those of the graphs, and ComfyUI's arithmetic of steps by hand."""

import json

import pytest

from tests.sampling.recipe.comfyui.graphs import node, read, read_quietly, sampler, text_to_image
from velatura.errors import BadRecipe
from velatura.sampling.recipe.comfyui import infotext_from_comfyui
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sizes import setup_img2img_steps


def test_comfyuis_first_graph_gives_a_recipe():
    assert read_quietly(text_to_image()) == Recipe(
        prompt="a red house",
        negative="blurry",
        steps=20,
        sampler="DPM++ 2M",
        scheduler="Karras",
        guidance=8,
        seed=156680208700286,
        width=512,
        height=768,
        sgm_noise=True,  # ComfyUI scales the first noise by sqrt(1 + sigma²)
        base="v1-5-pruned",
    )


def test_the_size_is_that_of_the_latents():
    recipe, messages = read(text_to_image(), (1024, 1024))
    assert (recipe.width, recipe.height) == (512, 768)
    assert messages == [
        "the picture's ComfyUI graph: the picture is 1024x1024, and its graph makes 512x768: the latter is used"
    ]


@pytest.mark.parametrize(
    ("words", "sampler_name", "scheduler"),
    [
        (("euler", "normal"), "Euler", "Normal"),
        (("dpmpp_2m", "sgm_uniform"), "DPM++ 2M", "SGM Uniform"),
        (("heun", "simple"), "Heun", "Simple"),
        (("dpm_2", "exponential"), "DPM2", "Exponential"),
        (("lms", "beta"), "LMS", "Beta"),
        (("ddim", "ddim_uniform"), "Euler", "DDIM"),  # ComfyUI's ddim is Euler on the levels of the schedule
        (("euler", "kl_optimal"), "Euler", "KL Optimal"),
    ],
)
def test_comfyuis_words_become_ours(words, sampler_name, scheduler):
    recipe = read_quietly(text_to_image(n5=sampler(sampler_name=words[0], scheduler=words[1])))
    assert (recipe.sampler, recipe.scheduler) == (sampler_name, scheduler)


def test_the_first_noise_is_scaled_as_comfyui_does_at_the_highest_level_only():
    assert read_quietly(text_to_image(n5=sampler(scheduler="normal"))).sgm_noise
    assert not read_quietly(text_to_image(n5=sampler(scheduler="ddim_uniform"))).sgm_noise


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("res_multistep", "the nearest that it has is DPM++ 2M"),
        ("euler_cfg_pp", "the nearest that it has is Euler"),
        ("my_own_sampler", "choose another"),
    ],
)
def test_a_sampler_that_velatura_does_not_have_stays_in_the_recipe_and_is_named(word, advice):
    recipe, messages = read(text_to_image(n5=sampler(sampler_name=word)))
    assert recipe.sampler == word
    assert messages == [f"the picture's ComfyUI graph: velatura does not have its sampler {word!r}: {advice}"]


def test_a_schedule_that_velatura_does_not_have_stays_in_the_recipe_and_is_named():
    recipe, messages = read(text_to_image(n5=sampler(scheduler="linear_quadratic")))
    assert recipe.scheduler == "linear_quadratic"
    assert "velatura does not have its scheduler 'linear_quadratic'" in messages[0]


@pytest.mark.parametrize("word", ["euler_ancestral", "dpmpp_2m_sde_gpu", "lcm", "ddpm"])
def test_noise_of_the_steps_is_said_to_differ(word):
    _, messages = read(text_to_image(n5=sampler(sampler_name=word)))
    assert len(messages) == 1
    assert "ComfyUI draws the noise of" in messages[0]


def test_unipc_has_its_variant_and_other_noise_levels():
    recipe, messages = read(text_to_image(n5=sampler(sampler_name="uni_pc_bh2", scheduler="normal")))
    assert (recipe.sampler, recipe.unipc_variant, recipe.scheduler) == ("UniPC", "bh2", None)
    assert "ComfyUI runs UniPC on the noise levels of Normal, and velatura on its own" in messages[0]


@pytest.mark.parametrize(
    ("denoise", "steps", "total"), [(0.6, 20, 33), (0.5, 20, 40), (0.35, 12, 34), (0.75, 30, 40), (0.1, 7, 70)]
)
def test_an_init_image_takes_the_noise_levels_that_comfyui_takes(denoise, steps, total):
    """ComfyUI takes the last `steps` of int(steps / denoise) levels."""
    graph = text_to_image(
        n4=node("VAEEncode", pixels=["8", 0], vae=["1", 2]),
        n5=sampler(steps=steps, denoise=denoise),
        n8=node("LoadImage", image="cat.png", upload="image"),
    )
    recipe, messages = read(graph)
    assert recipe.steps == total
    assert setup_img2img_steps(recipe.steps, recipe.denoising).t_enc + 1 == steps
    assert recipe.denoising == pytest.approx(denoise, abs=0.02)
    assert any("from the image 'cat.png', which it does not contain: pass it with --image" in m for m in messages)
    assert any(f"here that is steps={total}" in message for message in messages)


def test_a_mask_is_named():
    graph = text_to_image(
        n4=node("SetLatentNoiseMask", samples=["9", 0], mask=["8", 1]),
        n5=sampler(denoise=0.8),
        n8=node("LoadImage", image="cat.png"),
        n9=node("VAEEncode", pixels=["8", 0], vae=["1", 2]),
    )
    recipe, messages = read(graph)
    assert recipe.mask_blur == 0
    assert any("by a mask that it does not contain: pass it with --mask" in message for message in messages)


def test_a_second_sampler_over_larger_latents_is_hires_fix():
    graph = text_to_image(
        n6=node("VAEDecode", samples=["9", 0], vae=["1", 2]),
        n8=node("LatentUpscale", samples=["5", 0], upscale_method="bicubic", width=1024, height=1536, crop="disabled"),
        n9=sampler(steps=12, denoise=0.5, latent_image=["8", 0], sampler_name="euler"),
    )
    recipe = read_quietly(graph, (1024, 1536))
    assert (recipe.steps, recipe.hires_steps, recipe.denoising) == (20, 12, 0.5)
    assert recipe.hires_size == (1024, 1536)
    assert (recipe.hires_upscaler, recipe.hires_sampler) == ("Latent (bicubic)", "Euler")


def test_a_factor_of_hires_fix_and_another_prompt_are_read():
    graph = text_to_image(
        n6=node("VAEDecode", samples=["9", 0], vae=["1", 2]),
        n8=node("LatentUpscaleBy", samples=["5", 0], upscale_method="nearest-exact", scale_by=1.5),
        n9=sampler(denoise=0.5, latent_image=["8", 0], positive=["10", 0], seed=7),
        n10=node("CLIPTextEncode", text="a detailed red house", clip=["1", 1]),
    )
    recipe, messages = read(graph, (768, 1152))
    assert (recipe.hires_scale, recipe.hires_prompt) == (1.5, "a detailed red house")
    assert messages == ["the picture's ComfyUI graph: its second pass has another seed (7): both take the first one's"]


def test_a_second_pass_of_another_aspect_ratio_that_stretches_is_named():
    upscale = node(
        "LatentUpscale", samples=["5", 0], upscale_method="bilinear", width=1024, height=1024, crop="disabled"
    )
    graph = text_to_image(
        n6=node("VAEDecode", samples=["9", 0], vae=["1", 2]), n8=upscale, n9=sampler(denoise=0.5, latent_image=["8", 0])
    )
    assert "its second pass stretches 512x768, and velatura crops it" in read(graph)[1][0]
    upscale["inputs"]["crop"] = "center"
    assert read_quietly(graph).hires_size == (1024, 1024)


def test_a_second_pass_over_an_enlarged_picture_is_hires_fix_in_pixels():
    graph = text_to_image(
        n8=node("ImageScale", image=["6", 0], upscale_method="lanczos", width=1024, height=1536, crop="disabled"),
        n9=node("VAEEncode", pixels=["8", 0], vae=["1", 2]),
        n10=sampler(denoise=0.4, latent_image=["9", 0]),
        n11=node("VAEDecode", samples=["10", 0], vae=["1", 2]),
        n7=node("SaveImage", images=["11", 0]),
    )
    recipe = read_quietly(graph, (1024, 1536))
    assert (recipe.hires_size, recipe.hires_upscaler, recipe.denoising) == ((1024, 1536), "Lanczos", 0.4)


def test_a_second_pass_by_a_network_asks_for_its_file():
    graph = text_to_image(
        n8=node("ImageUpscaleWithModel", image=["6", 0], upscale_model=["12", 0]),
        n9=node("VAEEncode", pixels=["13", 0], vae=["1", 2]),
        n10=sampler(denoise=0.4, latent_image=["9", 0]),
        n11=node("VAEDecode", samples=["10", 0], vae=["1", 2]),
        n7=node("SaveImage", images=["11", 0]),
        n12=node("UpscaleModelLoader", model_name="4x-UltraSharp.pth"),
        n13=node("ImageScaleBy", image=["8", 0], upscale_method="bilinear", scale_by=0.5),
    )
    recipe, messages = read(graph, (1024, 1536))
    assert (recipe.hires_upscaler, recipe.hires_size) == ("4x-UltraSharp", (1024, 1536))
    assert "enlarges by the network '4x-UltraSharp': have its file in the library" in messages[0]


def test_a_picture_that_was_enlarged_afterwards_is_made_at_its_first_size():
    graph = text_to_image(
        n7=node("SaveImage", images=["8", 0]),
        n8=node("ImageUpscaleWithModel", image=["6", 0], upscale_model=["9", 0]),
        n9=node("UpscaleModelLoader", model_name="4x.pth"),
    )
    recipe, messages = read(graph, (2048, 3072))
    assert (recipe.width, recipe.height) == (512, 768)
    assert messages == [
        "the picture's ComfyUI graph: the picture was resized after sampling (ImageUpscaleWithModel): "
        "velatura makes it as it was before"
    ]


def test_nodes_after_sampling_are_named():
    graph = text_to_image(
        n7=node("SaveImage", images=["8", 0]),
        n8=node("FaceDetailer", image=["6", 0], model=["1", 0], positive=["2", 0], negative=["3", 0], steps=20, cfg=8),
    )
    recipe, messages = read(graph)
    assert recipe.prompt == "a red house"
    assert messages == [
        "the picture's ComfyUI graph has nodes that velatura does not support: FaceDetailer; "
        "the picture will be different"
    ]


def test_the_sampler_that_leads_to_the_saved_picture_counts():
    graph = text_to_image(n8=sampler(seed=1), n9=node("VAEDecode", samples=["8", 0], vae=["1", 2]))
    assert read_quietly(graph).seed == 156680208700286
    graph["10"] = node("PreviewImage", images=["9", 0])
    assert read_quietly(graph).seed == 156680208700286


def test_two_different_pictures_of_one_graph_are_refused_by_their_nodes():
    graph = text_to_image(
        n8=sampler(seed=1), n9=node("VAEDecode", samples=["8", 0], vae=["1", 2]), n10=node("SaveImage", images=["9", 0])
    )
    with pytest.raises(BadRecipe, match="it makes 2 different pictures, at the nodes 7, 10"):
        read(graph)


def two_passes():
    return text_to_image(
        n8=node("LatentUpscaleBy", samples=["5", 0], upscale_method="bilinear", scale_by=2),
        n9=sampler(denoise=0.5, latent_image=["8", 0]),
        n10=node("VAEDecode", samples=["9", 0], vae=["1", 2]),
        n11=node("SaveImage", images=["10", 0]),
    )


def test_of_the_pictures_of_two_passes_the_size_says_which():
    assert read_quietly(two_passes(), (512, 768)).hires_scale is None
    assert read_quietly(two_passes(), (1024, 1536)).hires_scale == 2


def test_the_last_of_several_passes_is_read_where_no_size_says_which():
    recipe, messages = read(two_passes(), (0, 0))
    assert recipe.hires_scale == 2
    assert messages == [
        "the picture's ComfyUI graph: it saves pictures of several passes: that of the last, 11, is read"
    ]


def test_a_turbo_model_of_one_step_is_read():
    graph = text_to_image(
        n5=node(
            "SamplerCustom",
            model=["1", 0],
            add_noise=True,
            noise_seed=3,
            cfg=1,
            positive=["2", 0],
            negative=["3", 0],
            sampler=["8", 0],
            sigmas=["9", 0],
            latent_image=["4", 0],
        ),
        n8=node("KSamplerSelect", sampler_name="euler"),
        n9=node("SDTurboScheduler", model=["1", 0], steps=1, denoise=1),
    )
    assert read_quietly(graph).scheduler == "SGM Uniform"
    graph["9"]["inputs"]["steps"] = 4
    assert "does not have its scheduler 'sd_turbo': the nearest that it has is SGM Uniform" in read(graph)[1][0]


def test_an_output_that_no_sampler_leads_to_does_not_count():
    graph = text_to_image(
        n8=node("LoadImage", image="pose.png"),
        n9=node("OpenposePreprocessor", image=["8", 0]),
        n10=node("SaveImage", images=["9", 0]),
    )
    assert read_quietly(graph).prompt == "a red house"


def test_a_sampler_of_an_extension_with_plain_names_is_read_and_named():
    recipe, messages = read(text_to_image(n5=sampler("KSampler //Inspire", noise_mode="GPU(=A1111)")))
    assert (recipe.prompt, recipe.steps, recipe.sampler) == ("a red house", 20, "DPM++ 2M")
    assert messages == [
        "the picture's ComfyUI graph has nodes that velatura does not support: KSampler //Inspire; "
        "the picture will be different"
    ]


def test_two_ways_to_save_one_picture_are_one_picture():
    assert read_quietly(text_to_image(n8=node("SaveImage", images=["6", 0]))).prompt == "a red house"


def test_one_of_a_batch_is_said_to_be_the_first():
    _, messages = read(text_to_image(n4=node("EmptyLatentImage", width=512, height=768, batch_size=4)))
    assert messages == [
        "the picture's ComfyUI graph: the picture is one of 4 of the same seed: only the first of them can be repeated"
    ]


def test_numbers_and_names_come_through_links():
    graph = text_to_image(
        n4=node("EmptyLatentImage", width=["8", 0], height=["9", 0], batch_size=1),
        n5=sampler(seed=["10", 0], steps=["11", 0], cfg=["12", 0], sampler_name=["12", 1]),
        n8=node("PrimitiveInt", value=640),
        n9=node("Int Literal", int=960),
        n10=node("Seed (rgthree)", seed=42),
        n11=node("Reroute", any=["8", 0]),
        n12=node("KSampler Config (rgthree)", steps_total=30, refiner_step=24, cfg=6.5, sampler_name="euler"),
    )
    graph["11"] = node("PrimitiveInt", value="25")
    recipe = read_quietly(graph, (640, 960))
    assert (recipe.width, recipe.height, recipe.seed, recipe.steps) == (640, 960, 42, 25)
    assert (recipe.guidance, recipe.sampler) == (6.5, "Euler")


def test_steps_from_an_unknown_place_are_refused_by_name():
    graph = text_to_image(n5=sampler(steps=["8", 0]), n8=node("MathExpression", a=3, b=7, expression="a*b"))
    with pytest.raises(BadRecipe, match=r"the steps comes from MathExpression \(node 8\), whose value is not plain"):
        read(graph)


def test_a_vae_of_its_own_is_recorded():
    graph = text_to_image(
        n6=node("VAEDecode", samples=["5", 0], vae=["8", 0]), n8=node("VAELoader", vae_name="x\\mse.pt")
    )
    assert read_quietly(graph).vae == "mse"


def test_two_parts_of_the_steps_are_one_sampling():
    first = sampler("KSamplerAdvanced", seed=None, denoise=None, noise_seed=5, add_noise="enable")
    first["inputs"] |= {"start_at_step": 0, "end_at_step": 12, "return_with_leftover_noise": "enable"}
    second = json.loads(json.dumps(first))
    second["inputs"] |= {"add_noise": "disable", "start_at_step": 12, "end_at_step": 10000, "latent_image": ["5", 0]}
    second["inputs"]["return_with_leftover_noise"] = "disable"
    graph = text_to_image(n5=first, n8=second, n6=node("VAEDecode", samples=["8", 0], vae=["1", 2]))
    recipe = read_quietly(graph)
    assert (recipe.steps, recipe.seed) == (20, 5)
    second["inputs"]["model"] = ["9", 0]  # a refiner
    graph["9"] = node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors")
    _, messages = read(graph)
    assert "KSamplerAdvanced (node 5) stops after step 12 of 20: velatura takes all steps" in messages[0]
    assert "was sampled again by KSamplerAdvanced (node 8), which is left out" in messages[1]


def test_a_sampler_in_parts_is_read():
    graph = text_to_image(
        n5=node(
            "SamplerCustomAdvanced",
            noise=["8", 0],
            guider=["9", 0],
            sampler=["10", 0],
            sigmas=["11", 0],
            latent_image=["4", 0],
        ),
        n8=node("RandomNoise", noise_seed=77),
        n9=node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=5),
        n10=node("KSamplerSelect", sampler_name="heun"),
        n11=node("BasicScheduler", model=["1", 0], scheduler="sgm_uniform", steps=24, denoise=1),
    )
    recipe = read_quietly(graph)
    assert (recipe.seed, recipe.guidance, recipe.steps) == (77, 5, 24)
    assert (recipe.sampler, recipe.scheduler, recipe.negative) == ("Heun", "SGM Uniform", "blurry")
    graph["9"] = node("BasicGuider", model=["1", 0], conditioning=["2", 0])
    assert (read_quietly(graph).guidance, read_quietly(graph).negative) == (1, "")


@pytest.mark.parametrize(
    ("kind", "name", "neutral", "other"), [("SamplerDPMPP_SDE", "r", 0.5, 0.3), ("SamplerLMS", "order", 4, 2)]
)
def test_options_of_a_sampler_that_velatura_does_not_have_are_named(kind, name, neutral, other):
    """The neutral values are the defaults of ComfyUI's nodes, and of k-diffusion's functions."""
    graph = text_to_image(
        n5=node("SamplerCustom", model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], cfg=7),
        n8=node(kind, **{name: neutral}),
        n9=node("KarrasScheduler", steps=20, sigma_max=14.614642, sigma_min=0.0291675, rho=7.0),
    )
    graph["5"]["inputs"] |= {"noise_seed": 7, "add_noise": True, "sampler": ["8", 0], "sigmas": ["9", 0]}
    assert not any(f"{name} of {kind}" in message for message in read(graph)[1])
    graph["8"]["inputs"][name] = other
    assert [f"{name} of {kind} (node 8)" in message for message in read(graph)[1]].count(True) == 1


def test_what_the_editor_adds_to_nodes_is_not_named():
    encoder = node("CLIPTextEncode", text="a red house", speak_and_recognation={"__value__": [False, True]})
    encoder["inputs"]["clip"] = ["1", 1]
    read_quietly(text_to_image(n2=encoder))


def test_limits_of_noise_levels_are_read():
    graph = text_to_image(
        n5=node(
            "SamplerCustom",
            model=["1", 0],
            add_noise=True,
            noise_seed=3,
            cfg=7,
            positive=["2", 0],
            negative=["3", 0],
            sampler=["8", 0],
            sigmas=["9", 0],
            latent_image=["4", 0],
        ),
        n8=node("SamplerEulerAncestral", eta=0.0, s_noise=1.0),
        n9=node("KarrasScheduler", steps=15, sigma_max=14.614642, sigma_min=0.1, rho=5),
    )
    recipe = read_quietly(graph)
    assert (recipe.sampler, recipe.eta, recipe.scheduler, recipe.steps) == ("Euler a", 0, "Karras", 15)
    assert (recipe.sigma_min, recipe.sigma_max, recipe.rho) == (0.1, 0, 5)


def test_changes_of_the_model_are_named_in_one_warning():
    graph = text_to_image(
        n5=sampler(model=["9", 0]),
        n8=node("FreeU_V2", model=["1", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2),
        n9=node("PerturbedAttentionGuidance", model=["8", 0], scale=3),
    )
    _, messages = read(graph)
    assert messages == [
        "the picture's ComfyUI graph has nodes that velatura does not support: PerturbedAttentionGuidance, FreeU_V2; "
        "the picture will be different"
    ]


def test_another_prediction_is_named_with_the_options_for_it():
    graph = text_to_image(
        n5=sampler(model=["8", 0]), n8=node("ModelSamplingDiscrete", model=["1", 0], sampling="v_prediction", zsnr=True)
    )
    _, messages = read(graph)
    assert len(messages) == 1
    assert "open the base with --prediction v --zero-snr" in messages[0]


def test_a_layer_of_the_text_encoder_is_clip_skip():
    graph = text_to_image(
        n2=node("CLIPTextEncode", text="a red house", clip=["8", 0]),
        n3=node("CLIPTextEncode", text="blurry", clip=["8", 0]),
        n8=node("CLIPSetLastLayer", clip=["1", 1], stop_at_clip_layer=-2),
    )
    assert read_quietly(graph).clip_skip == 2
    graph["3"]["inputs"]["clip"] = ["1", 1]
    assert "its texts go through different LoRAs or clip skips" in read(graph)[1][0]


def test_graphs_of_efficiency_nodes_are_read():
    graph = {
        "1": node(
            "Efficient Loader",
            ckpt_name="SD15\\anything.safetensors",
            vae_name="Baked VAE",
            clip_skip=-2,
            lora_name="style\\ink.safetensors",
            lora_model_strength=0.8,
            lora_clip_strength=0.5,
            positive="a red house",
            negative="blurry",
            token_normalization="none",
            weight_interpretation="comfy",
            empty_latent_width=512,
            empty_latent_height=768,
            batch_size=1,
            lora_stack=["3", 0],
        ),
        "2": sampler(
            "KSampler (Efficient)",
            positive=["1", 1],
            negative=["1", 2],
            latent_image=["1", 3],
            preview_method="auto",
            vae_decode="true",
        ),
        "3": node("LoRA Stacker", input_mode="simple", lora_count=1, lora_name_1="a.safetensors", lora_wt_1=0.4),
        "4": node("SaveImage", images=["2", 5]),
    }
    recipe = read_quietly(graph)
    assert recipe.prompt == "a red house<lora:a:0.4><lora:ink:0.5:0.8>"
    assert (recipe.negative, recipe.clip_skip, recipe.base) == ("blurry", 2, "anything")
    assert (recipe.width, recipe.height) == (512, 768)
    graph["1"]["inputs"] |= {"positive": "a ((red)) house", "weight_interpretation": "A1111"}
    recipe = read_quietly(graph)
    assert (recipe.prompt, recipe.emphasis) == ("a ((red)) house<lora:a:0.4><lora:ink:0.5:0.8>", "Original")
    graph["1"]["inputs"]["weight_interpretation"] = "comfy++"
    assert "reads emphasis as 'comfy++', and velatura as ComfyUI does" in read(graph)[1][0]
    graph["1"]["inputs"] |= {"weight_interpretation": "comfy", "token_normalization": "mean", "cnet_stack": ["9", 0]}
    graph["2"]["inputs"]["script"] = ["8", 0]
    assert (
        "script of KSampler (Efficient) (node 2), token_normalization of Efficient Loader (node 1), cnet_stack of "
        "Efficient Loader (node 1)"
    ) in read(graph)[1][0]


def test_graphs_of_easy_use_are_read():
    graph = {
        "1": node(
            "easy fullLoader",
            ckpt_name="anything.safetensors",
            vae_name="Baked VAE",
            clip_skip=-2,
            lora_name="None",
            lora_model_strength=1,
            lora_clip_strength=1,
            resolution="512 x 768",
            empty_latent_width=512,
            empty_latent_height=768,
            positive="a red house",
            negative="blurry",
            batch_size=1,
        ),
        "2": node("easy preSampling", pipe=["1", 0], steps=25, cfg=7, sampler_name="euler", scheduler="normal", seed=9),
        "3": node("easy kSampler", pipe=["2", 0], image_output="Preview"),
        "4": node("SaveImage", images=["3", 1]),
    }
    recipe = read_quietly(graph)
    assert (recipe.prompt, recipe.negative, recipe.steps, recipe.seed) == ("a red house", "blurry", 25, 9)
    assert (recipe.clip_skip, recipe.width, recipe.height) == (2, 512, 768)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n5": sampler(positive=["4", 0])}, r"needs a conditioning and is connected to output 0 of EmptyLatentImage"),
        (
            {"n5": sampler(positive=["2", 1])},
            r"connected to output 1 of CLIPTextEncode \(node 2\), which gives nothing",
        ),
        ({"n5": sampler(model=["1", 1])}, r"needs a model and is connected to output 1 of CheckpointLoaderSimple"),
        ({"n5": sampler(positive=["99", 0])}, r"KSampler \(node 5\) is connected to node 99, which does not exist"),
        ({"n5": sampler(positive=None)}, r"KSampler \(node 5\) has no positive prompt"),
        ({"n5": sampler(steps=None)}, r"KSampler \(node 5\) has no steps"),
        ({"n5": sampler(steps="many")}, r"the steps of KSampler \(node 5\) is 'many', which is not a number"),
        ({"n5": sampler(latent_image=None)}, r"has no latents to start from"),
        ({"n2": node("CLIPTextEncode", clip=["1", 1])}, r"its positive prompt comes from CLIPTextEncode"),
        ({"n2": node("CLIPTextEncode", text=7.5, clip=["1", 1])}, r"is '7.5', which is not a text"),
        ({"n2": node("CLIPTextEncode", text="a house")}, r"CLIPTextEncode \(node 2\) has no clip"),
        (
            {"n2": node("CLIPTextEncode", text=["1", 0], clip=["1", 1])},
            r"output 0 of CheckpointLoaderSimple .* neither",
        ),
        ({"n5": sampler(negative=None)}, r"KSampler \(node 5\) has no negative prompt"),
        ({"n5": sampler(cfg=None)}, r"KSampler \(node 5\) has no cfg"),
        ({"n5": sampler(sampler_name=None)}, r"KSampler \(node 5\) has no sampler_name"),
        ({"n5": sampler(scheduler=None)}, r"KSampler \(node 5\) has no scheduler"),
        (
            {"n6": node("VAEDecode", samples=["4", 0])},
            r"comes from EmptyLatentImage \(node 4\), and not from a sampler",
        ),
        ({"n7": node("SaveImage", images=["7", 0])}, r"circle at SaveImage"),
        ({"n5": sampler(latent_image=["5", 0])}, r"its samplers form a circle"),
        ({"n2": node("ConditioningZeroOut", conditioning=["2", 0])}, r"replaces the positive prompt by zeros"),
        ({"n2": node("ConditioningSetMask", conditioning=["2", 0])}, r"circle at ConditioningSetMask"),
    ],
)
def test_a_graph_whose_prompt_or_sampler_cannot_be_found_is_refused_by_its_node(change, message):
    with pytest.raises(BadRecipe, match=message):
        read(text_to_image(**change))


@pytest.mark.parametrize("chunk", ["{}", "[]", "a plain chunk", '{"3": "KSampler"}', "[" * 100_000])
def test_what_is_not_a_graph_gives_nothing(chunk):
    assert infotext_from_comfyui({"prompt": chunk}, (8, 8)) is None


def test_a_graph_of_ten_thousand_nodes_is_read():
    nodes = {"n8": node("FreeU", model=["1", 0])}
    nodes |= {f"n{key}": node("FreeU", model=[str(key - 1), 0]) for key in range(9, 10_000)}
    _, messages = read(text_to_image(n5=sampler(model=["9999", 0]), **nodes))
    assert len(messages) == 1


def test_up_to_a_hundred_outputs_of_one_picture_are_read():
    saving = {f"n{key}": node("SaveImage", images=["6", 0]) for key in range(8, 107)}
    assert read_quietly(text_to_image(**saving)) == read_quietly(text_to_image())
    with pytest.raises(BadRecipe, match="it makes 101 pictures, and at most 100 are read"):
        read(text_to_image(**saving, n107=node("SaveImage", images=["6", 0])))


def test_outputs_that_each_come_through_thousands_of_nodes_are_too_large_together():
    nodes = {"n8": node("FreeU", model=["1", 0])}
    nodes |= {f"n{key}": node("FreeU", model=[str(key - 1), 0]) for key in range(9, 5_000)}
    nodes |= {f"n{key}": node("SaveImage", images=["6", 0]) for key in range(5_000, 5_050)}
    with pytest.raises(BadRecipe, match="it is too large"):
        read(text_to_image(n5=sampler(model=["4999", 0]), **nodes))


def test_conditionings_combined_over_and_over_are_refused_at_once():
    nodes = {f"n{key}": combination(key) for key in range(9, 200)}
    graph = text_to_image(n5=sampler(positive=["199", 0]), n8=combination(3), **nodes)
    with pytest.raises(BadRecipe, match=r"too large|more than"):
        read(graph)


def combination(key):
    link = [str(key - 1), 0]
    return node("ConditioningCombine", conditioning_1=link, conditioning_2=link)
