/** The form of a training: kind, preset, name, numbers with the preset's values, what it will take, and the start. */

import { ApiError, get } from "../api.js";
import { go, say } from "../app.js";
import { debounce, fill, h } from "../dom.js";
import { checkNumbers, choiceField, clearErrors, hintLine, numberField, showError, textField } from "../fields.js";
import { follow, live, submit, whenOver } from "../jobs.js";
import { KINDS, OVERLAY_FIELDS, PLAN_FIELDS, chosenBase, duration, known, loadBases, settings, toRequest } from "./settings.js";

const ESTIMATE_PAUSE = 700; // milliseconds after the last key
const GIB = 2 ** 30;
const LONG_JOBS = ["paint", "grid", "train", "resume", "compare", "tune", "merge", "bake", "extract"]; // of the device

/** @returns {HTMLElement} */
export function trainingForm() {
  const kindText = h("p.quiet", {});
  const estimate = h("div.estimate", { "aria-live": "polite" });
  const problem = h("p.error.form-error", { role: "alert", hidden: true });
  const start = h("button.primary", { type: "submit" }, "Start training");
  const look = h("button", { type: "button", onclick: () => takeEstimate() }, "What will this take?");
  const fields = buildFields();
  const form = h(
    "form.train-form",
    { noValidate: true, onsubmit: begin },
    h("h2", {}, "What to train"),
    h("div.fields", {}, fields.kind, fields.purpose, fields.name, fields.base, fields.flip),
    kindText,
    h(
      "details",
      {},
      h("summary", {}, "Steps, learning rate, previews"),
      h("div.fields", {}, Object.values(OVERLAY_FIELDS).flat().map((name) => fields[name]), PLAN_FIELDS.filter((name) => name !== "flip").map((name) => fields[name])),
    ),
    h("div.row", {}, start, look),
    problem,
    estimate,
  );
  form.append(hintLine(form, "An empty field takes the preset's value, which it shows."));
  let shownPreset = "";
  let asked = 0;

  /** @param {Event} event */
  async function begin(event) {
    event.preventDefault();
    clearErrors(form);
    if (!canBegin()) return;
    start.disabled = true;
    try {
      const job = await submit(toRequest("train"));
      fill(estimate);
      go("train", { run: job.request.run });
      say("The training is in the queue.");
    } catch (error) {
      refuse(error);
    } finally {
      start.disabled = false;
    }
  }

  /** @returns {boolean} False after saying what is missing or wrong. */
  function canBegin() {
    if (!checkNumbers(form)) return false;
    if (!settings.get("dataset")) showError(form, { message: "Drop or choose pictures first." });
    return Boolean(settings.get("dataset"));
  }

  async function takeEstimate() {
    clearErrors(form);
    if (!canBegin()) return;
    const turn = ++asked;
    const isBusy = isDeviceBusy();
    fill(estimate, h("p.quiet", {}, isBusy ? "Waiting for the jobs before it ..." : "Measuring a step ..."));
    try {
      const job = await whenOver((await submit(toRequest("estimate"))).id);
      if (turn !== asked) return; // the settings have changed since
      fill(estimate, ...(job.state === "done" ? describeEstimate(job) : []));
      if (job.error) refuse(new ApiError(422, job.error));
    } catch (error) {
      fill(estimate);
      refuse(error);
    }
  }

  /** @param {unknown} error */
  function refuse(error) {
    if (!(error instanceof ApiError)) throw error;
    const field = error.field?.replace(/^overlay\.\w+\./, "") ?? namedField(error.message);
    showError(form, { message: error.message, field });
  }

  async function showKind() {
    const { kind, purpose } = settings.values;
    kindText.textContent = KINDS[kind]?.text ?? "";
    for (const [owner, names] of Object.entries(OVERLAY_FIELDS)) {
      for (const name of names) fields[name].hidden = owner !== kind;
    }
    for (const name of [...PLAN_FIELDS, "purpose"]) fields[name].hidden = kind === "aesthetic";
    inputOf("name").placeholder = settings.get("dataset") ?? "automatic";
    const family = chosenBase()?.family || "SD1";
    const wanted = `${kind}/${purpose}/${family}`;
    if (kind === "aesthetic" || wanted === shownPreset) return;
    shownPreset = wanted;
    try {
      const preset = await get(`api/plans/${kind}`, { purpose, family });
      if (shownPreset !== wanted) return;
      known.preset = preset;
      for (const name of PLAN_FIELDS) showPreset(name, preset[name]);
    } catch (error) {
      shownPreset = "";
      refuse(error);
    }
  }

  /** @param {string} name @param {{value: any, description: string}} field */
  function showPreset(name, { value, description }) {
    if (name === "flip") {
      /** @type {any} */ (fields.flip).setChoices(flipChoices(value ? "preset: yes" : "preset: no"));
      return;
    }
    if (name === "preview_every") value = "six times"; // the preset has none: they cost time that a page spares nobody
    if (name === "pixels") value ??= "the base's size";
    if (name === "preview_prompt") value ??= "the first caption";
    inputOf(name).placeholder = String(value ?? "");
    const why = /** @type {HTMLElement} */ (fields[name].querySelector(".why"));
    why.textContent = `${description[0].toUpperCase()}${description.slice(1)}. Empty: ${value}, as the preset for a ${settings.get("purpose")} has it.`;
    if (["preview_every", "pixels", "preview_prompt"].includes(name)) why.textContent = why.textContent.replace(/, as the preset.*$/, ".");
  }

  /** @param {string} name */
  function inputOf(name) {
    return /** @type {HTMLInputElement} */ (fields[name].querySelector("input, textarea"));
  }

  /** On the tiny base a step is measured at once; on others it would take the device from a person who paints. */
  const estimateSoon = debounce(() => {
    const isVisible = !form.closest("[hidden]");
    if (settings.get("dataset") && chosenBase()?.family === "tiny" && !isDeviceBusy() && isVisible) takeEstimate();
  }, ESTIMATE_PAUSE);

  settings.subscribe((names) => {
    showKind();
    if (names.includes("drafts") || names.includes("focus")) return;
    asked += 1; // an estimate that is under way is for other settings
    fill(estimate);
    estimateSoon();
  });
  const showBases = async (isAgain = false) => {
    await loadBases(isAgain);
    const choices = known.bases.map((base) => [base.is_default ? "" : base.name, base.name]);
    /** @type {any} */ (fields.base).setChoices(choices.length ? choices : [["", "the server's"]]);
    showKind();
    estimateSoon();
  };
  follow((job) => ["base", "pull", "bake", "merge"].includes(job.kind) && job.state === "done" && showBases(true));
  showBases();
  return form;
}

/** @param {string} preset What the preset says, in words. @returns {[string, string][]} */
function flipChoices(preset) {
  return [["", preset], ["yes", "yes"], ["no", "no"]];
}

function isDeviceBusy() {
  return [...live.values()].some((job) => LONG_JOBS.includes(job.kind));
}

/** @returns {Record<string, HTMLElement>} */
function buildFields() {
  const count = { min: 1, step: 1 };
  return {
    kind: choiceField(settings, "kind", { label: "Kind", choices: Object.entries(KINDS).map(([kind, { title }]) => [kind, title]), why: "What is trained. A LoRA is a good first try: it learns styles and subjects, and is quick to train." }),
    purpose: choiceField(settings, "purpose", { label: "Preset for", choices: [["style", "a style"], ["subject", "a subject"]], why: "Which values the empty fields have: those that serve a style, or one thing or person." }),
    name: textField(settings, "name", { label: "Name", why: "What prompts call it by, and the name of its file. Empty: that of the pictures." }),
    base: choiceField(settings, "base", { label: "Base", choices: [["", "the server's"]], why: "The model that it is trained on, and for. It stays as it is." }),
    flip: choiceField(settings, "flip", { label: "Mirror images", choices: flipChoices("preset"), why: "Yes: the mirror image of every picture is learned too, unless its caption says left or right. Choose no for faces, writing and other things that are not symmetric." }),
    rank: numberField(settings, "rank", { label: "Rank", ...count, max: 4096, placeholder: "16", why: "How much it can hold (network dim). Empty: 16, enough for a style; files grow with it." }),
    vectors: numberField(settings, "vectors", { label: "Vectors", unit: "tokens", ...count, max: 75, placeholder: "4", why: "How many tokens the word stands for. Empty: 4; more hold more and leave less room in a prompt." }),
    initial: textField(settings, "initial", { label: "Begins as", placeholder: "*", why: "A word near to what is to be learned (Initialization text). Empty: *, no word in particular." }),
    layers: textField(settings, "layers", { label: "Layers", placeholder: "1, 2, 1", why: "Widths of the layers, in multiples of the context. Empty: 1, 2, 1, as A1111 has it." }),
    activation: textField(settings, "activation", { label: "Activation", placeholder: "relu", why: "The function between layers: relu, mish, tanh, linear and others. Empty: relu." }),
    class_prompt: textField(settings, "class_prompt", { label: "Class prompt", placeholder: "none", why: "What the base is to keep, as \"a dog\": pictures of it are painted and trained on too. Empty: none." }),
    steps: numberField(settings, "steps", { label: "Steps", unit: "steps", ...count, max: 1e6, why: "Empty: as many as the preset has." }),
    learning_rate: textField(settings, "learning_rate", { label: "Learning rate", why: "Empty: the preset's." }),
    batch_size: numberField(settings, "batch_size", { label: "Batch", unit: "pictures", ...count, max: 4096, why: "Empty: the preset's." }),
    pixels: numberField(settings, "pixels", { label: "Size", unit: "px", min: 16, max: 4096, why: "Empty: the base's size." }),
    preview_prompt: textField(settings, "preview_prompt", { label: "Preview prompt", why: "Empty: the first caption." }),
    preview_every: numberField(settings, "preview_every", { label: "Preview every", unit: "steps", min: 0, max: 1e6, why: "Empty: six times." }),
    validation_pictures: numberField(settings, "validation_pictures", { label: "Validation", unit: "pictures", min: 0, max: 4096, why: "Empty: the preset's." }),
    seed: numberField(settings, "seed", { label: "Seed", min: 0, max: 2 ** 63, why: "Empty: the preset's." }),
  };
}

/** @param {string} message @returns {string | null} The field of the plan that a refusal speaks of. */
function namedField(message) {
  const words = new Set(message.match(/\w+/g) ?? []);
  const names = [...PLAN_FIELDS, ...Object.values(OVERLAY_FIELDS).flat()];
  return names.find((name) => words.has(name)) ?? (/learning rate|rates?\b/.test(message) ? "learning_rate" : null);
}

/** @param {import("../jobs.js").LiveJob} job */
function describeEstimate({ result, warnings }) {
  const { pictures, mirror_images, seconds, memory, steps, times_seen, parameters, captions_from_names } = result;
  const isTraining = seconds !== undefined;
  return [
    h("p", {}, h("strong", {}, isTraining ? `It takes ${duration(seconds)} and ${(memory / GIB).toFixed(1)} GiB of memory` : "It takes seconds"), isTraining && ", and the time of previews."),
    h(
      "p.quiet",
      {},
      isTraining ? `${pictures} pictures${mirror_images ? ` and ${mirror_images} mirror images` : ""}, each seen ${times_seen} times in ${steps} steps; ${parameters.toLocaleString("en")} numbers are learned.` : `${pictures} pictures are looked at.`,
    ),
    captions_from_names > 0 && h("p.quiet", {}, `${captions_from_names} captions are the names of files.`),
    warnings.length > 0 && h("ul.findings", {}, warnings.map((text) => h("li", {}, text))),
  ];
}
