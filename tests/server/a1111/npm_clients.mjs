// Makes every call that a client of A1111's API has, and prints what came back as JSON: node npm_clients.mjs CLIENT PORT
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [client, port, folder] = process.argv.slice(2);
const require = createRequire(pathToFileURL(join(folder, "package.json")));
const small = { steps: 1, width: 64, height: 64, seed: 7 };
const url = `http://127.0.0.1:${port}`;
const answers = {};

async function call(name, ask) {
  try {
    answers[name] = { value: (await ask()) ?? null };
  } catch (error) {
    answers[name] = { error: String(error), detail: error?.response?.data ?? null };
  }
  return answers[name].value;
}

async function sizeOf(image) {
  const { width, height } = await image.metadata();
  return [width, height];
}

// a1111-webui-api, stable-diffusion-api and stable-diffusion-client have the same calls
async function callStableDiffusionApi({ StableDiffusionApi }) {
  const sharp = require("sharp");
  const api = new StableDiffusionApi({ host: "127.0.0.1", port: Number(port), defaultSampler: "Euler", defaultStepCount: 1 });
  const sizes = async (result) => {
    const images = result.images ?? [];
    return Promise.all(images.map(async (_, number) => sizeOf(await imageAt(result, number))));
  };
  const imageAt = async (result, number) =>
    result.getSharpImage ? result.getSharpImage(number) : result.images[number];
  let picture;
  await call("txt2img", async () => {
    const result = await api.txt2img({ prompt: "a red house", negative_prompt: "snow", sampler_name: "Euler a", ...small });
    picture = sharp(await (await imageAt(result, 0)).png().toBuffer());
    return { sizes: await sizes(result), seed: result.info.seed ?? JSON.parse(result.info).seed };
  });
  await call("hires", async () =>
    sizes(await api.txt2img({ prompt: "a house", enable_hr: true, hr_upscaler: "Latent", denoising_strength: 0.5, hr_scale: 2, ...small })));
  await call("img2img", async () =>
    sizes(await api.img2img({ init_images: [picture], prompt: "snow", denoising_strength: 0.5, ...small })));
  const mask = sharp({ create: { width: 64, height: 64, channels: 3, background: "white" } }).png();
  await call("inpaint", async () =>
    sizes(await api.img2img({ init_images: [picture], mask_image: mask, prompt: "snow", inpainting_fill: 1, ...small })));
  await call("extraSingle", async () =>
    sizes(await api.extraSingle({ image: picture, upscaler_1: "Lanczos", upscaling_resize: 2 })));
  await call("extraBatch", async () =>
    sizes(await api.extraBatch({ images: [picture, picture], name_list: ["a", "b"], upscaler_1: "Nearest", upscaling_resize: 2 })));
  await call("pngInfo", async () => (await api.pngInfo(picture)).info);
  await call("interrogate", async () => (await api.interrogate(picture, "clip")).response?.data ?? {});
  for (const name of ["getOptions", "getProgress", "getCmdFlags", "getSamplers", "getUpscalers", "getSdModels",
    "getHypernetworks", "getFaceRestorers", "getRealesrganModels", "getPromptStyles", "refreshCheckpoints", "getCurrentModel"]) {
    await call(name, () => api[name]());
  }
  await call("setOptions", () => api.setOptions({ CLIP_stop_at_last_layers: 1 }));
  await call("setModel", () => api.setModel("tiny"));
  await call("waitForReady", () => api.waitForReady(0.05));
}

const clients = {
  "a1111-webui-api": () => callStableDiffusionApi(require("a1111-webui-api")),
  "stable-diffusion-api": () => callStableDiffusionApi(require("stable-diffusion-api")),
  "stable-diffusion-client": () => callStableDiffusionApi(require("stable-diffusion-client")),
  "node-sd-webui": async () => {
    const module = require("node-sd-webui");
    const api = (module.default ?? module)({ apiUrl: url });
    const settings = { prompt: "a red house", width: 64, height: 64, steps: 1, seed: 7, samplingMethod: "Euler a" };
    const first = await call("txt2img", () => api.txt2img(settings));
    const image = first?.images[0];
    await call("hires", () =>
      api.txt2img({ ...settings, hires: { steps: 1, denoisingStrength: 0.5, upscaler: "Latent", upscaleBy: 2 } }));
    await call("script", () => api.txt2img({ ...settings, prompt: "a house|at night", script: { name: "Prompt matrix", args: [] } }));
    await call("img2img", () => api.img2img({ ...settings, imageData: [image] }));
    await call("pngInfo", () => api.pngInfo({ imageData: image }));
  },
  modelfusion: async () => {
    const { automatic1111, generateImage } = require("modelfusion");
    const api = automatic1111.Api({ baseUrl: { protocol: "http", host: "127.0.0.1", port } });
    const model = automatic1111.ImageGenerator({ api, model: "tiny", ...small });
    await call("generateImage", async () => {
      const image = await generateImage({ model: model.withTextPrompt(), prompt: "a red house" });
      return sizeOf(require("sharp")(Buffer.from(image)));
    });
    await call("negative", async () =>
      (await generateImage({ model, prompt: { prompt: "a red house", negativePrompt: "snow" } })).length);
  },
};

await clients[client]();
process.stdout.write(JSON.stringify(answers) + "\n", () => process.exit(0)); // not before all of it is written
