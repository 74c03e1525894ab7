/** What is typed in the tab Train, and its way to a request. */

import { get } from "../api.js";
import { Store } from "../store.js";

/** @type {Record<string, {title: string, text: string}>} */
export const KINDS = {
  lora: { title: "LoRA", text: "Changes layers of the base a little. Serves styles and subjects; what most people share." },
  hypernet: { title: "Hypernetwork", text: "Changes how words are read. Serves styles well; a small file." },
  embedding: { title: "Embedding", text: "A new word that prompts use. The smallest file; the base stays as it is." },
  dreambooth: { title: "DreamBooth", text: "Changes the whole base. The strongest for a subject; a large file." },
  aesthetic: { title: "Aesthetic gradient", text: "The mean of what CLIP sees in the pictures. Made in seconds, without steps." },
};
/** Fields of the plan that the tab shows; the server's preset has their values and what they mean. */
export const PLAN_FIELDS = ["flip", "steps", "learning_rate", "batch_size", "pixels", "preview_prompt", "preview_every", "validation_pictures", "seed"];
/** Options of overlays, by the kinds that have them. @type {Record<string, string[]>} */
export const OVERLAY_FIELDS = { lora: ["rank"], embedding: ["vectors", "initial"], hypernet: ["layers", "activation"], dreambooth: ["class_prompt"] };
const PREVIEWS = 6; // rows of pictures that a training paints if nothing else is asked for
const FAMILY_PIXELS = { tiny: 64, SDXL: 1024 };

export const settings = new Store("train", {
  dataset: null,
  base: null,
  kind: "lora",
  purpose: "style",
  name: "",
  focus: "salient",
  drafts: {},
  rank: null,
  vectors: null,
  initial: "",
  layers: "",
  activation: "",
  class_prompt: "",
  flip: null,
  steps: null,
  learning_rate: "",
  batch_size: null,
  pixels: null,
  preview_prompt: "",
  preview_every: null,
  validation_pictures: null,
  seed: null,
});

/**
 * The bases of the server, and the preset for what is chosen; filled as they are asked for.
 *
 * @type {{bases: any[], preset: Record<string, {value: any, description: string}>}}
 */
export const known = { bases: [], preset: {} };

/** @type {Promise<void> | null} */
let loading = null;

/** @param {boolean} [isAgain] Ask again @returns {Promise<void>} Done when the bases are known, or the server is away. */
export function loadBases(isAgain = false) {
  if (isAgain || !loading) {
    loading = get("api/bases").then(
      (bases) => {
        known.bases = bases;
      },
      () => {
        loading = null; // the banner tells of it
      },
    );
  }
  return loading;
}

/** @returns {any} The base that is trained on, as the server lists it. */
export function chosenBase() {
  return known.bases.find((base) => (settings.get("base") ? base.name === settings.get("base") : base.is_default));
}

/** @returns {number} The side of the pictures in training. */
export function trainingPixels() {
  const base = chosenBase();
  return settings.get("pixels") ?? base?.pixels ?? FAMILY_PIXELS[/** @type {"tiny"} */ (base?.family)] ?? 512;
}

/**
 * Return a request for a training, or for an estimate of it.
 *
 * @param {"train" | "estimate"} kind
 */
export function toRequest(kind) {
  const { values } = settings;
  /** @type {Record<string, any>} */
  const overlay = { kind: values.kind };
  for (const name of OVERLAY_FIELDS[values.kind] ?? []) {
    if (values[name] === null || values[name] === "") continue;
    overlay[name] = name === "layers" ? values.layers.split(/[\s,]+/).filter(Boolean).map(toNumber) : values[name];
  }
  /** @type {Record<string, any>} */
  const plan = {};
  if (values.kind !== "aesthetic") {
    for (const name of PLAN_FIELDS) if (values[name] !== null && values[name] !== "") plan[name] = name === "flip" ? values.flip === "yes" : values[name];
    const steps = values.steps ?? known.preset.steps?.value ?? 0;
    plan.preview_every ??= Math.max(1, Math.round(steps / PREVIEWS));
    if (plan.preview_every === 0) delete plan.preview_prompt;
  }
  /** @type {Record<string, any>} */
  const request = { kind, overlay, dataset: values.dataset, plan };
  if (values.kind !== "aesthetic") request.purpose = values.purpose;
  for (const name of ["name", "base"]) if (values[name]) request[name] = values[name];
  return request;
}

/** @param {string} text @returns {number | string} What is not a number stays, so that the server says so. */
function toNumber(text) {
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

/** @param {number} seconds @returns {string} In words, as "about 2 minutes". */
export function duration(seconds) {
  if (seconds >= 7200) return `about ${(seconds / 3600).toFixed(1)} hours`;
  if (seconds >= 100) return `about ${Math.round(seconds / 60)} minutes`;
  return `about ${Math.max(1, Math.round(seconds))} s`;
}
