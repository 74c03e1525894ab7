/** Paint: prompts, overlays, settings, an image to begin from; the picture as it is painted, and all that were. */

import { ApiError, get, getBlob } from "../api.js";
import { go, say } from "../app.js";
import { debounce, fill, h } from "../dom.js";
import { on } from "../events.js";
import { checkField, checkNumbers, choiceField, clearErrors, hintLine, numberField, showError } from "../fields.js";
import { cancel, follow, live, submit } from "../jobs.js";
import { bases, load as loadLibrary, sideOf, subscribe as onLibrary } from "../library.js";
import { FIELDS, hasSecondPass, settings, toRequest, useRecipe, withoutRecords } from "../recipe.js";
import { overlayCards } from "../paint/cards.js";
import { promptBoxes } from "../paint/prompt_box.js";
import { Results, Stage } from "../paint/stage.js";
import { beginFrom, startImage } from "../paint/start_image.js";
import { startStrip, strengthStrip, stripRecipes } from "../paint/strength_strip.js";

const KINDS = ["paint", "grid"]; // of jobs that make pictures
const EXAMPLES = ["a red house on the beach", "a blue cat in the snow at night", "a lighthouse at sunset, watercolor painting"];
const VARIATION = 0.2; // of "Vary": a sibling of the picture
const SIZE_STEP = 64;
const [MINE, MAX_MINE] = ["velatura:jobs", 50];
/** @typedef {import("../paint/stage.js").StoredPicture} StoredPicture */

/** @param {HTMLElement} root */
export function mount(root) {
  const mine = new Set(readMine()); // jobs of this page, also before a reload
  const boxes = promptBoxes();
  const start = startImage();
  const stage = new Stage([
    { title: "Again", why: "Paint this recipe again with a new seed", run: (picture) => repaint(picture, { seed: undefined }) },
    { title: "Vary", why: `Mix a fifth of other noise into this picture's: a sibling of it`, run: vary },
    { title: "Use as start", why: "Begin the next pictures from this one", run: useAsStart },
    { title: "Use recipe", why: "Take prompt, seed and all settings of this picture", run: ({ recipe }) => useRecipe(recipe, bases.map((base) => base.name)) },
  ], EXAMPLES);
  let isFollowing = true; // show new pictures as they come, until an older one is looked at
  const results = new Results((picture, isChosen) => {
    if (isChosen) isFollowing = picture === results.pictures[0];
    look(picture);
  });
  const strip = strengthStrip((id) => {
    const picture = results.find(id);
    isFollowing = false;
    if (picture) look(picture);
  });
  const paintButton = h("button.primary", { type: "submit", title: "Ctrl+Enter" }, "Paint");
  const stopButton = h("button", { type: "button", hidden: true, title: "Escape", onclick: () => stop() }, "Stop");
  const bar = h("progress", { max: 1, value: 0 });
  const progress = h("p.progress-text", {});
  const progressBox = h("div.progress", { hidden: true }, bar, progress);
  bar.setAttribute("aria-label", "Progress of painting");
  const formError = h("p.error.form-error", { role: "alert", hidden: true });
  const form = h(
    "form.paint-form",
    { onsubmit: (/** @type {Event} */ event) => event.preventDefault(), novalidate: true },
    ...boxes.fields,
    h("div.row.paint-actions", {}, paintButton, stopButton, progressBox),
    formError,
    ...settingsParts(start.element, () => stage.picture && settings.set({ seed: stage.picture.recipe.seed })),
  );
  paintButton.addEventListener("click", () => paint());
  form.append(hintLine(form, "Each setting explains itself here while it is under the pointer or has the focus."));
  const cards = overlayCards(paintStrip);
  root.classList.add("paint");
  root.append(h("h1.unseen", {}, "Paint"), form, h("div.paint-middle", {}, h("h2.unseen", {}, "Picture"), stage.view, results.element, strip, stage.facts), cards);

  /**
   * Send a request, with what a refusal says beside the field that caused it.
   *
   * @param {any} request
   */
  async function send(request) {
    clearErrors(form);
    isFollowing = true;
    try {
      const job = await submit(request);
      mine.add(job.id);
      storeMine([...mine]);
      return job;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      showError(form, error);
      return null;
    }
  }

  async function paint() {
    if (!checkNumbers(form)) return;
    if (await start.ready()) await send(toRequest(settings.values));
  }

  /** @param {import("../library.js").LibraryFile} file */
  async function paintStrip(file) {
    if (!checkNumbers(form)) return;
    if (!(await start.ready())) return;
    const recipes = stripRecipes(file);
    const job = await send(toRequest(settings.values, { recipes, count: 1 }));
    if (job) startStrip(job.id, file, recipes[0].seed);
  }

  /** @param {StoredPicture} picture @param {Record<string, any>} changes Undefined takes a field away. */
  async function repaint(picture, changes) {
    const { recipe } = picture;
    const job = await get(`api/jobs/${picture.job}`).catch(() => null);
    const { image, mask, base } = job?.request ?? {};
    if (recipe.image_hash && !image) return showError(form, { message: "The image that this picture began from is not stored any more." });
    const values = { base: base ?? settings.get("base"), image, mask };
    return send(toRequest(values, { recipes: [{ ...withoutRecords(recipe), ...changes }], count: 1 }));
  }

  /** @param {StoredPicture} picture */
  function vary(picture) {
    const strength = picture.recipe.variation_strength || VARIATION;
    return repaint(picture, { variation_strength: strength, variation_seed: undefined });
  }

  /** @param {StoredPicture} picture */
  async function useAsStart(picture) {
    try {
      await beginFrom(await getBlob(`api/pictures/${picture.id}/file`));
      const part = /** @type {HTMLDetailsElement} */ (start.element.closest("details"));
      part.open = true;
      say("The picture is the image to begin from.");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      showError(form, error);
    }
  }

  /** Stop what this page began; without such a job, the button stops what runs for another page or program. */
  function stop({ onlyMine = false } = {}) {
    clearErrors(form);
    const jobs = [...live.values()].filter((job) => KINDS.includes(job.kind));
    const own = jobs.filter((job) => mine.has(job.id));
    const stopped = own.length || onlyMine ? own : jobs.filter((job) => job.state === "running");
    for (const job of stopped) cancel(job.id).catch((problem) => showError(form, problem));
  }

  /** @param {StoredPicture} picture */
  function look(picture) {
    stage.show(picture);
    results.mark(picture.id);
    go("paint", { picture: picture.id }, { replace: true });
  }

  function showProgress() {
    const jobs = [...live.values()].filter((job) => KINDS.includes(job.kind));
    const running = jobs.find((job) => job.state === "running");
    stopButton.hidden = jobs.length === 0;
    progressBox.hidden = jobs.length === 0;
    if (!jobs.length) return;
    const waiting = jobs.length - (running ? 1 : 0);
    const { done = 0, total = null } = running?.progress ?? {};
    if (total) bar.value = done / total;
    else bar.removeAttribute("value");
    const texts = [running && (total ? `step ${done} of ${total}` : "begins"), waiting > 0 && `${waiting} waiting`];
    progress.textContent = texts.filter(Boolean).join(", ");
  }

  follow((job, event) => {
    if (!KINDS.includes(job.kind)) return;
    showProgress();
    if (event?.type === "step" && event.previews && isFollowing) {
      stage.preview(event.previews);
    }
    if (job.state === "failed" || job.state === "cancelled") stage.restore();
    if (!mine.has(job.id)) return;
    if (job.state === "failed") showError(form, { message: job.error.message, field: job.error.field ?? fieldOf(job.error.code) });
    if (job.state === "done") say("The picture is finished.");
  });
  on("picture", async (event) => {
    const picture = await get(`api/pictures/${event.id}`).catch(() => null);
    if (!picture || results.find(picture.id)) return;
    results.add(picture, true);
    lookAtNewest();
  });
  on("connection", async ({ isOpen, hasGap }) => {
    if (!isOpen) return;
    await results.catchUp();
    if (hasGap) lookAtNewest();
    if (hasGap) boxes.count();
  });
  document.addEventListener("keydown", (event) => {
    if (root.hidden || event.defaultPrevented) return;
    const isPaint = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (isPaint) paint();
    if (event.key === "Escape" && live.size) stop({ onlyMine: true });
    if (isPaint) event.preventDefault();
  });
  settings.subscribe(debounce(() => stage.picture && !stage.view.querySelector(".stage-previews") && stage.refreshReport(), 200));
  showProgress();
  begin();
  return { show: lookAtNewest };

  /** Show the newest picture, unless an older one is looked at; one that comes while the tab is hidden is shown later. */
  function lookAtNewest() {
    const newest = results.pictures[0];
    if (isFollowing && !root.hidden && newest && newest.id > (stage.picture?.id ?? 0)) look(newest);
  }

  async function begin() {
    loadLibrary().then(boxes.count);
    await results.load();
    const wanted = Number(new URLSearchParams(location.hash.split("?")[1]).get("picture"));
    const picture = results.find(wanted) ?? (wanted ? await get(`api/pictures/${wanted}`).catch(() => null) : null) ?? results.pictures[0];
    if (stage.picture || stage.view.children.length) return; // one was finished meanwhile
    isFollowing = picture === results.pictures[0];
    if (picture) {
      stage.show(picture);
      results.mark(picture.id);
    } else stage.showEmpty();
  }
}

/**
 * Build the settings: what is changed often, and parts that open.
 *
 * @param {HTMLElement} start The part of the image to begin from.
 * @param {() => void} takeShownSeed
 */
function settingsParts(start, takeShownSeed) {
  const isWide = window.matchMedia("(min-width: 900px)").matches;
  const number = (/** @type {string} */ name, more = {}) => numberField(settings, name, { ...FIELDS[name], ...more });
  const base = choiceField(settings, "base", { label: "Base", why: "The model that paints. The first is the one that the server was started with.", choices: [["", "the server's own"]] });
  const sampler = choiceField(settings, "sampler", { ...FIELDS.sampler, choices: [FIELDS.sampler.value] });
  const scheduler = choiceField(settings, "scheduler", { ...FIELDS.scheduler, choices: [["", "Automatic"]] });
  const upscaler = choiceField(settings, "hires_upscaler", { ...FIELDS.hires_upscaler, choices: [FIELDS.hires_upscaler.value] });
  const tools = (/** @type {string} */ text, /** @type {string} */ title, /** @type {() => void} */ onclick) => {
    const button = h("button.tool", { type: "button", title, onclick }, text);
    button.setAttribute("aria-label", title);
    return button;
  };
  const dice = tools("⚄", "A new seed each time", () => settings.set({ seed: null }));
  const recycle = tools("↺", "Take the seed of the picture that is shown", takeShownSeed);
  const swap = tools("⇄", "Swap width and height", () => settings.set({ width: settings.get("height"), height: settings.get("width") }));
  const size = [number("width", { step: 1 }), number("height", { step: 1, buttons: [swap] })];
  for (const field of size) field.querySelector("input")?.setAttribute("step", String(SIZE_STEP));
  const count = numberField(settings, "count", { label: "Count", unit: "pictures", min: 1, max: 100, why: "How many pictures, each with the next seed (Batch count). One shows soonest whether the prompt works." });

  const showSide = () => {
    for (const field of size) /** @type {HTMLInputElement} */ (field.querySelector("input")).placeholder = baseSide();
  };
  const restorer = choiceField(settings, "face_restorer", { ...FIELDS.face_restorer, choices: [["", "the first"]] });
  const faces = part("Restore faces", ["restore_faces"], h("div.fields", {}, checkField(settings, "restore_faces", FIELDS.restore_faces), restorer, number("codeformer_weight")));
  let hasRestorer = false;
  const showFaces = () => (faces.hidden = !hasRestorer && !settings.get("restore_faces"));
  settings.subscribe(showFaces);
  showFaces();
  get("api/recipes/choices").then(({ samplers, schedulers, upscalers, face_restorers }) => {
    sampler.setChoices(samplers);
    scheduler.setChoices([["", "Automatic"], ...schedulers.filter((/** @type {string} */ name) => name !== "Automatic")]);
    upscaler.setChoices(upscalers);
    restorer.setChoices([["", "the first"], ...face_restorers.map((/** @type {string} */ name) => /** @type {[string, string]} */ ([name, name]))]);
    hasRestorer = face_restorers.length > 0;
    showFaces();
  }, () => {});
  onLibrary(() => {
    const own = bases.find((found) => found.is_default);
    const others = bases.filter((found) => !found.is_default);
    base.setChoices([["", own ? `${own.name} (the server's own)` : "the server's own"], ...others.map((found) => /** @type {[string, string]} */ ([found.name, found.name]))]);
    showSide();
  });
  settings.subscribe((names) => {
    if (names.includes("base")) showSide();
  });

  const seed = number("seed", { buttons: [dice, recycle] });
  for (const field of [seed, base]) field.classList.add("wide");
  const main = h("div.fields", {}, sampler, number("steps"), number("guidance"), count, seed, ...size, base);
  const image = part("Begin from an image", ["image"], start);
  const denoising = number("denoising");
  const second = part("Second pass, larger", ["hires_scale"], h("div.fields", {}, number("hires_scale", { placeholder: "off" }), number("hires_steps"), upscaler));
  const more = part(
    "More settings",
    ["scheduler", "clip_skip", "tiling", "variation_strength", "extra"],
    h("div.fields", {}, scheduler, number("clip_skip"), number("variation_strength"), number("variation_seed"), checkField(settings, "tiling", FIELDS.tiling)),
    extraFields(),
  );
  const showDenoising = () => (denoising.hidden = !settings.get("image") && !hasSecondPass(settings.values));
  settings.subscribe(showDenoising);
  showDenoising();
  const all = h("details.settings", { open: isWide }, h("summary", {}, "Settings"), main);
  return [all, image, second, denoising, faces, more];
}

/**
 * Build a part that opens, and says when closed that something in it is not as by default.
 *
 * @param {string} title
 * @param {string[]} names Of settings.
 * @param {...Node} children
 */
function part(title, names, ...children) {
  const mark = h("span.unit", {}, "");
  const isSet = () => names.some((name) => !settings.isDefault(name));
  const box = h("details", { open: isSet() }, h("summary", {}, title, mark), ...children);
  const show = () => (mark.textContent = isSet() ? " in use" : "");
  settings.subscribe(show);
  show();
  return box;
}

/** Show the settings that came with a recipe and have no field here; each can be taken out. */
function extraFields() {
  const box = h("div.row.extra", {});
  const show = () => {
    const extra = settings.get("extra");
    fill(
      box,
      Object.entries(extra).map(([name, value]) => {
        const { [name]: _removed, ...rest } = extra;
        const button = h("button.small-button", { type: "button", onclick: () => settings.set({ extra: rest }) }, `${name.replaceAll("_", " ")}: ${value} ×`);
        button.setAttribute("aria-label", `Take out ${name} ${value}`);
        return button;
      }),
    );
  };
  settings.subscribe((names) => names.includes("extra") && show());
  show();
  return box;
}

function baseSide() {
  return String(sideOf(settings.get("base")) ?? "the base's own");
}


/** @returns {string[]} Ids of jobs; none where the browser keeps nothing. */
function readMine() {
  try {
    return JSON.parse(sessionStorage.getItem(MINE) ?? "[]");
  } catch {
    return [];
  }
}

/** @param {string[]} ids */
function storeMine(ids) {
  try {
    sessionStorage.setItem(MINE, JSON.stringify(ids.slice(-MAX_MINE)));
  } catch {
    // storage is off or full: after a reload these jobs are like those of others
  }
}

/** @param {string} code Of an error that names no field. @returns {string | null} */
function fieldOf(code) {
  return { bad_prompt: "prompt", wrong_base: "prompt", bad_overlay: "prompt" }[code] ?? null;
}
