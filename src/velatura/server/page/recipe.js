/**
 * The settings of the tab Paint, as a store, and their way to a recipe and back.
 *
 * The names are those of velatura's Recipe (docs/pictures.md). An empty field is null, and the server's default counts.
 */

import { Store } from "./store.js";

/**
 * Fields of a recipe that the tab Paint shows, with velatura's defaults, in the order in which differences are listed.
 * `why` says what a field does and why its default is what it is; A1111's word is in brackets where it differs.
 *
 * @type {Record<string, {label: string, value: any, why: string, unit?: string, min?: number, max?: number, step?: number, placeholder?: string}>}
 */
export const FIELDS = {
  prompt: { label: "Prompt", value: "", why: "What to show. Ctrl+Up and Ctrl+Down change the weight of the word at the cursor, Ctrl+Enter paints." },
  negative: { label: "Negative prompt", value: "", why: "What to avoid. Empty by default: many pictures need none." },
  sampler: { label: "Sampler", value: "Euler a", why: "How noise becomes a picture. Euler a is A1111's default: good after 20 steps, and varied." },
  scheduler: { label: "Noise schedule", value: null, why: "Which noise levels the steps have (Schedule type). Automatic: the sampler's own." },
  steps: { label: "Steps", value: 20, unit: "steps", min: 1, max: 1000, why: "Sampling steps. After 20 most samplers have settled; twice the steps take twice the time." },
  guidance: { label: "Guidance", value: 7, unit: "×", step: 0.5, why: "How much the prompt counts (CFG scale). 7 suits most SD bases; 1 is no guidance and twice as fast." },
  seed: { label: "Seed", value: null, min: -1, max: 2 ** 63, placeholder: "new each time", why: "The noise that a picture begins from. Empty: a new one each time. The same seed and settings make the same picture." },
  width: { label: "Width", value: null, unit: "px", min: 8, max: 8192, why: "Empty: the size that the base was trained on, where it works best. Multiples of 8." },
  height: { label: "Height", value: null, unit: "px", min: 8, max: 8192, why: "Empty: the size that the base was trained on, where it works best. Multiples of 8." },
  clip_skip: { label: "CLIP skip", value: 1, unit: "layers", min: 1, max: 12, why: "Which layer of the text encoder is read, from its end. 1, the last, is what SD was trained with; 2 is for bases that ask for it." },
  tiling: { label: "Tiling", value: false, why: "Make a picture that can be tiled without seams. Off: it costs sharpness at the edges." },
  variation_seed: { label: "Variation seed", value: null, min: -1, max: 2 ** 63, placeholder: "new each time", why: "The seed of other noise to mix in. Empty: a new one each time." },
  variation_strength: { label: "Variation", value: 0, unit: "of 1", min: 0, max: 1, step: 0.05, why: "How much of the other noise is mixed in: 0 nothing, 0.2 a sibling of the picture, 1 another picture." },
  denoising: { label: "Denoising", value: null, unit: "of 1", min: 0, max: 1, step: 0.05, placeholder: "0.75", why: "How much of the image, or of the first pass, is replaced (Denoising strength). Empty: 0.75 for an image, 0.7 for a second pass." },
  fit: { label: "Fit", value: "stretch", why: "How the image is brought to the size (Resize mode). Stretch keeps all of it." },
  mask_blur: { label: "Mask blur", value: 4, unit: "px", min: 0, max: 64, why: "How soft the mask's edge is. 4 hides the seam and keeps the shape." },
  masked_content: { label: "Under the mask", value: "original", why: "What the masked part starts from (Masked content). The original keeps colours and shapes." },
  mask_padding: { label: "Only masked, with", value: null, unit: "px around", min: 0, max: 8192, placeholder: "whole picture", why: "Make only the masked part, at full size, with so many pixels around it (Inpaint area). Empty: the whole picture." },
  hires_scale: { label: "Enlarge", value: null, unit: "×", min: 1, max: 16, step: 0.25, why: "Make a second pass at so many times the size (Hires. fix). 2: double each side, about five times the time." },
  hires_steps: { label: "Second steps", value: 0, unit: "steps", min: 0, max: 1000, why: "Steps of the second pass (Hires steps). 0: as many as in the first." },
  hires_upscaler: { label: "Upscaler", value: "Latent", why: "How the first pass is enlarged. Latent is A1111's default; it invents more detail, and wants a denoising of 0.5 or more." },
  restore_faces: { label: "Restore faces", value: false, why: "Paint small faces anew by a network made for faces (Restore faces), and leave the rest as it is." },
  face_restorer: { label: "Restorer", value: null, why: "What restores faces. The first is A1111's choice, if its file is there." },
  codeformer_weight: { label: "CodeFormer weight", value: 0.5, unit: "of 1", min: 0, max: 1, step: 0.05, why: "0 for the best looks, 1 for the closest likeness. GFPGAN does not have it." },
};
const FACE_FIELDS = ["face_restorer", "codeformer_weight"];

/** Settings that belong to a request rather than to its recipe. */
const REQUEST_FIELDS = { base: null, count: 1, image: null, image_size: null, mask: null, extra: {} };
const MASK_FIELDS = ["mask_blur", "masked_content", "mask_padding"];
/** What a recipe records of how its picture was made, which changes nothing in a new one. */
export const RECORDED = [
  ...["base", "base_hash", "vae", "vae_hash", "text", "text_hash", "prediction", "zero_snr", "weights", "image_hash", "mask_hash"],
  ...["overlay_hashes", "resources", "template", "negative_template", "version"],
];

/** The defaults by name. */
export const DEFAULTS = Object.fromEntries(Object.entries(FIELDS).map(([name, field]) => [name, field.value]));

/** What is typed in the tab Paint. `extra` has fields of a recipe that the tab does not show. */
export const settings = new Store("paint", { ...DEFAULTS, ...REQUEST_FIELDS });

/**
 * Return whether a second pass is made: at so many times the size, or at the size that came with a recipe.
 *
 * @param {Record<string, any>} values Settings.
 */
export function hasSecondPass(values) {
  return values.hires_scale !== null || Boolean(values.extra.hires_size);
}

/**
 * Return the recipe that the settings describe: its fields that differ from their defaults.
 *
 * @param {Record<string, any>} values
 * @returns {Record<string, any>}
 */
export function toRecipe(values) {
  const unused = [...(values.image ? [] : ["fit"]), ...(values.image && values.mask ? [] : MASK_FIELDS)];
  const names = Object.keys(FIELDS).filter((name) => !unused.includes(name));
  const chosen = names.filter((name) => values[name] !== null && values[name] !== DEFAULTS[name]);
  const recipe = { ...values.extra, ...Object.fromEntries(chosen.map((name) => [name, values[name]])) };
  const isTwice = hasSecondPass(values);
  if (!values.image && !isTwice) delete recipe.denoising;
  if (!isTwice) for (const name of Object.keys(recipe).filter((field) => field.startsWith("hires_"))) delete recipe[name];
  if (!values.variation_strength) delete recipe.variation_seed;
  if (!values.restore_faces) for (const name of FACE_FIELDS) delete recipe[name];
  if (recipe.seed === -1) delete recipe.seed;
  return recipe;
}

/**
 * Return the request for a paint job.
 *
 * @param {Record<string, any>} values Settings.
 * @param {{recipes?: Record<string, any>[], count?: number}} [changes] Recipes instead of the settings' own.
 */
export function toRequest(values, changes = {}) {
  /** @type {Record<string, any>} */
  const request = { kind: "paint", recipes: changes.recipes ?? [toRecipe(values)], count: changes.count ?? values.count ?? 1 };
  for (const name of ["base", "image", "mask"]) if (values[name]) request[name] = values[name];
  if (!request.image) delete request.mask;
  return request;
}

/**
 * Return what the settings become when a recipe is used.
 *
 * @param {Record<string, any>} recipe Fields that differ from their defaults, as the server gives them.
 * @param {string[]} [bases] Names of bases that are here: only such a one is taken over.
 */
export function toSettings(recipe, bases = []) {
  const shown = Object.fromEntries(Object.keys(FIELDS).map((name) => [name, recipe[name] ?? DEFAULTS[name]]));
  const others = Object.entries(recipe).filter(([name]) => !(name in FIELDS) && !RECORDED.includes(name));
  return { ...shown, base: bases.includes(recipe.base) ? recipe.base : null, extra: Object.fromEntries(others) };
}

/**
 * Fill the tab Paint from a recipe. The image to begin from stays.
 *
 * @param {Record<string, any>} recipe
 * @param {string[]} [bases]
 */
export function useRecipe(recipe, bases = []) {
  settings.set(toSettings(recipe, bases));
}

/**
 * Return in what a recipe differs from settings.
 *
 * @param {Record<string, any>} recipe
 * @param {Record<string, any>} values
 * @param {number | null} side Of pictures where the settings leave the size to the base.
 * @returns {{name: string, label: string, theirs: string, mine: string}[]}
 */
export function differences(recipe, values, side) {
  const theirs = { ...DEFAULTS, ...toSettings(recipe).extra, ...pick(recipe, Object.keys(FIELDS)) };
  const mine = { ...DEFAULTS, ...values.extra, ...pick(values, Object.keys(FIELDS)) };
  for (const fields of [theirs, mine]) {
    fields.width ??= side;
    fields.height ??= side;
  }
  const names = [...new Set([...Object.keys(theirs), ...Object.keys(mine)])];
  return names
    .filter((name) => JSON.stringify(theirs[name] ?? null) !== JSON.stringify(mine[name] ?? null))
    .map((name) => ({ name, label: label(name), theirs: text(name, theirs[name]), mine: text(name, mine[name]) }));
}

/**
 * Return a recipe's fields, except its prompts, as pairs of a label and a text.
 *
 * @param {Record<string, any>} recipe
 * @returns {[string, string][]}
 */
export function describe(recipe) {
  const always = { steps: DEFAULTS.steps, sampler: DEFAULTS.sampler, guidance: DEFAULTS.guidance };
  /** @type {Record<string, any>} */
  const fields = { ...always, ...recipe };
  const order = [...Object.keys(FIELDS), ...Object.keys(fields)];
  return [...new Set(order)]
    .filter((name) => name in fields && !["prompt", "negative", "overlay_hashes", "resources"].includes(name))
    .map((name) => [label(name), text(name, fields[name])]);
}

/** @param {Record<string, any>} recipe @returns {Record<string, any>} Without what only records how its picture was made. */
export function withoutRecords(recipe) {
  return Object.fromEntries(Object.entries(recipe).filter(([name]) => !RECORDED.includes(name)));
}

/** @param {string} name */
export function label(name) {
  return FIELDS[name]?.label ?? (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");
}

/** @param {string} name @param {any} value */
function text(name, value) {
  if (value === null || value === undefined) return FIELDS[name]?.placeholder ?? "automatic";
  if (value === "") return "empty";
  if (typeof value === "boolean") return value ? "on" : "off";
  if (typeof value === "object") return JSON.stringify(value);
  const unit = FIELDS[name]?.unit;
  return unit && typeof value === "number" && !unit.startsWith("of") ? `${value} ${unit}` : String(value);
}

/** @param {Record<string, any>} values @param {string[]} names */
function pick(values, names) {
  return Object.fromEntries(names.filter((name) => values[name] !== undefined).map((name) => [name, values[name]]));
}
