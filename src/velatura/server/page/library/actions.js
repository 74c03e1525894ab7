/** What can be made of a file: another format, a base with it inside, a merge, an extract, its best strength. */

import { ApiError, post } from "../api.js";
import { go } from "../app.js";
import { fill, h } from "../dom.js";
import { checkNumbers, choiceField, clearErrors, numberField, showError, textField } from "../fields.js";
import { cancel, hasEnded, follow, submit } from "../jobs.js";
import { bases, library, load } from "../library.js";
import { Store } from "../store.js";

const LORA_FORMATS = [["", "as it is"], ["kohya", "kohya, which all programs read"], ["diffusers", "diffusers"], ["velatura", "velatura"]];
const ENDINGS = ["safetensors", "pt"];
/** Kinds of files that are neither bases nor overlays. */
export const NO_OVERLAYS = ["vae", "upscaler", "face-restorer", "face-detector", "unknown"];

/** @type {Map<string, Store>} */
const stores = new Map();

/** @param {string} name @param {Record<string, any>} defaults @returns {Store} One store for all openings of a file. */
function storeOf(name, defaults) {
  const store = stores.get(name) ?? new Store(name, defaults);
  stores.set(name, store);
  return store;
}

/** @param {any} file @returns {HTMLElement[]} */
export function actions(file) {
  if (file.error) return [];
  if (file.kind === "checkpoint") return [merging(file), extracting(file)];
  if (NO_OVERLAYS.includes(file.kind)) return [];
  return [tuning(file), converting(file), baking(file), ...(file.kind === "lora" ? [combining(file)] : [])];
}

/** @param {any} file */
function tuning(file) {
  const store = storeOf(`tune-${file.id}`, { base: null });
  return action("Find its best strength", "Paints it at seven strengths, measures likeness against the prompt kept, and writes the best one into its notes.", [baseField(store)], () => ({ kind: "tune", overlay: file.name, ...base(store) }), (result) => result.note);
}

/** @param {any} file */
function converting(file) {
  const store = storeOf(`convert-${file.id}`, { name: `${file.name}-copy`, ending: file.kind === "hypernet" ? "pt" : "safetensors", dialect: null });
  const fields = [nameField(store), choiceField(store, "ending", { label: "Format", choices: ENDINGS.map((ending) => [ending, `.${ending}`]), why: ".pt is what A1111 reads of hypernetworks; .safetensors is safe to share." })];
  if (file.kind === "lora") fields.push(choiceField(store, "dialect", { label: "For", choices: /** @type {any} */ (LORA_FORMATS), why: "Whose names the tensors get." }));
  const request = () => ({ kind: "convert", overlay: file.name, name: store.get("name"), ending: store.get("ending"), ...(store.get("dialect") ? { dialect: store.get("dialect") } : {}) });
  return action("Convert", "Writes it in another file format.", fields, request);
}

/** @param {any} file */
function baking(file) {
  const store = storeOf(`bake-${file.id}`, { name: `${file.name}-baked`, strength: null, base: null });
  const strength = file.strength ?? 1;
  const fields = [nameField(store), strengthField(store, "strength", strength), baseField(store)];
  const request = () => ({ kind: "bake", name: store.get("name"), overlays: [{ name: file.name, strength: store.get("strength") ?? strength }], ...base(store) });
  return action("Bake into a base", "Writes a checkpoint with it inside, for programs that do not read it.", fields, request);
}

/** @param {any} file */
function combining(file) {
  const store = storeOf(`combine-${file.id}`, { name: `${file.name}-merged`, other: null, strength: null, other_strength: null });
  const fields = [nameField(store), fileField(store, "other", "With", "lora", file), strengthField(store, "strength", 1), strengthField(store, "other_strength", 1, "Strength of the other")];
  const request = () => ({
    kind: "merge",
    name: store.get("name"),
    loras: [
      { name: file.name, strength: store.get("strength") ?? 1 },
      { name: store.get("other") ?? "", strength: store.get("other_strength") ?? 1 },
    ],
  });
  return action("Merge with another LoRA", "Writes one LoRA that acts as both do.", fields, request);
}

/** @param {any} file */
function merging(file) {
  const store = storeOf(`merge-${file.id}`, { name: `${file.name}-merged`, other: null, strength: null });
  const fields = [nameField(store), fileField(store, "other", "With", "checkpoint", file), numberField(store, "strength", { label: "Share of the other", min: 0, max: 1, step: 0.05, placeholder: "0.5", why: "0 is this base, 1 the other one (Multiplier). Empty: 0.5." })];
  const request = () => ({ kind: "merge", name: store.get("name"), models: [file.name, store.get("other") ?? ""], strength: store.get("strength") ?? 0.5 });
  return action("Merge with another base", "Writes a base between both.", fields, request);
}

/** @param {any} file */
function extracting(file) {
  const store = storeOf(`extract-${file.id}`, { name: `${file.name}-difference`, base: null, rank: null });
  const fields = [nameField(store), baseField(store, "From"), numberField(store, "rank", { label: "Rank", min: 1, max: 4096, placeholder: "by tolerance", why: "How much of the difference is kept. Empty: as much as matters in each layer." })];
  const request = () => ({ kind: "extract", name: store.get("name"), base: store.get("base") ?? ownBase(), other: file.name, ...(store.get("rank") ? { rank: store.get("rank") } : {}) });
  return action("Extract a LoRA", "Writes what this base has beyond another one as a LoRA.", fields, request);
}

/**
 * Build a form that sends a job, shows its progress, and leads to what came of it.
 *
 * @param {string} title
 * @param {string} text
 * @param {HTMLElement[]} fields
 * @param {() => any} request
 * @param {(result: any) => string} [tell]
 */
function action(title, text, fields, request, tell) {
  const problem = h("p.error.form-error", { role: "alert", hidden: true });
  const start = h("button", { type: "submit" }, title);
  const box = h("div.job-progress", { "aria-live": "polite" });
  const form = h("form.library-action", { noValidate: true, onsubmit: send }, h("p.quiet", {}, text), h("div.fields", {}, fields), h("div.row", {}, start), problem, box);

  /** @param {Event} event */
  async function send(event) {
    event.preventDefault();
    clearErrors(form);
    if (!checkNumbers(form)) return;
    try {
      watch(await submit(request()), box, tell);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      showError(form, { message: error.message, field: error.field?.startsWith("models") || error.field?.startsWith("loras") ? "other" : error.field });
    }
  }
  return h("details", {}, h("summary", {}, title), form);
}

/**
 * Show the progress and the end of a job.
 *
 * @param {import("../jobs.js").LiveJob} job
 * @param {HTMLElement} box
 * @param {(result: any) => string} [tell]
 */
export function watch(job, box, tell) {
  const bar = h("progress", { max: 1, value: 0 });
  bar.setAttribute("aria-label", "Progress");
  const line = h("p.quiet", {}, "Waiting ...");
  const stop = h("button", { type: "button", onclick: () => cancel(job.id).catch((error) => (line.textContent = error.message)) }, "Stop");
  fill(box, h("div.row", {}, bar, line, stop));
  const unfollow = follow((changed) => {
    if (changed.id !== job.id) return;
    const { done, total, stage } = changed.progress;
    bar.value = total ? done / total : 0;
    const isDownload = stage === "downloading";
    const parts = isDownload ? [mebibytes(done), total && `of ${mebibytes(total)}`] : total ? [`${done} of ${total}`] : [];
    if (changed.state === "running") line.textContent = [stage, ...parts].filter(Boolean).join(" ");
    if (!hasEnded(changed)) return;
    unfollow();
    if (changed.state === "failed") fill(box, h("p.error", { role: "alert" }, changed.error.message));
    else if (changed.state === "cancelled") fill(box, h("p.quiet", {}, "It was stopped."));
    else fill(box, ...describeEnd(changed, tell));
  });
}

/** @param {import("../jobs.js").LiveJob} job @param {(result: any) => string} [tell] */
function describeEnd({ result, warnings }, tell) {
  const name = result.name ?? result.file?.replace(/.*\//, "").replace(/\.\w+$/, "");
  const lines = [...(tell ? [tell(result)] : []), ...(result.report ?? [])];
  const find = name && h("button", { type: "button", onclick: () => showFile(name) }, `Show ${name}`);
  return [h("p", {}, tell ? "Done." : `${name} is in the library.`), lines.length > 0 && h("pre.verdict", {}, lines.join("\n")), warnings.length > 0 && h("ul.findings", {}, warnings.map((text) => h("li", {}, text))), find && h("div.row", {}, find)];
}

/** @param {string} name Of a file that has just been written: neither the page nor the server has listed it yet. */
async function showFile(name) {
  await post("api/library/refresh").catch(() => {});
  await load();
  const file = library.files.find((candidate) => candidate.name === name);
  go("library", file ? { file: file.id } : {});
}

/** @param {Store} store */
function nameField(store) {
  return textField(store, "name", { label: "Name of the new file", why: "Without its ending. A name that is taken is refused." });
}

/** @param {Store} store @param {string} [label] */
function baseField(store, label = "Base") {
  return choiceField(store, "base", { label, choices: bases.map((one) => [one.is_default ? "" : one.name, one.name]), why: "Empty: the server's own." });
}

/** @param {Store} store @param {string} name @param {number} usual @param {string} [label] */
function strengthField(store, name, usual, label = "Strength") {
  return numberField(store, name, { label, min: -10, max: 10, step: 0.05, placeholder: String(usual), why: `How strongly it acts. Empty: ${usual}.` });
}

/** @param {Store} store @param {string} name @param {string} label @param {string} kind @param {any} except */
function fileField(store, name, label, kind, except) {
  const files = library.files.filter((file) => file.kind === kind && file.id !== except.id && !file.error).map((file) => file.name);
  const more = kind === "checkpoint" && except.name !== "tiny" ? ["tiny"] : [];
  return choiceField(store, name, { label, choices: [["", "choose one"], ...more, ...files], why: "Another file of the library." });
}

/** @param {Store} store */
function base(store) {
  return store.get("base") ? { base: store.get("base") } : {};
}

function ownBase() {
  return bases.find((one) => one.is_default)?.name ?? "tiny";
}

/** @param {number} bytes */
function mebibytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
