/** Compare: train every kind of overlay alike on the same pictures, watch it, and read which one serves best. */

import { ApiError, get, url } from "../api.js";
import { go, say } from "../app.js";
import { fill, h } from "../dom.js";
import { checkField, checkNumbers, choiceField, clearErrors, hintLine, numberField, showError, textField } from "../fields.js";
import { cancel, follow, hasEnded, live, submit, watch } from "../jobs.js";
import { OVERLAY_KINDS, library, load as loadLibrary, misfit, subscribe } from "../library.js";
import { Store } from "../store.js";

const KINDS = { embedding: "Embedding", hypernet: "Hypernetwork", lora: "LoRA", dreambooth: "DreamBooth", aesthetic: "Aesthetic gradient" };
const DEFAULT_MINUTES = 12;
const FIGURES = { score: "Score", likeness: "Likeness", kept: "Prompt kept", together: "Score with both", other_left: "Left of the other", strength: "Best strength" };
const TOGETHER_FIGURES = ["together", "other_left"]; // of a study with another overlay

const settings = new Store("compare", {
  dataset: null,
  base: null,
  study: "",
  purpose: "style",
  seeds: 3,
  minutes: null,
  together: null,
  together_strength: null,
  ...Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, true])),
});

/** @param {HTMLElement} root */
export function mount(root) {
  const dataset = choiceField(settings, "dataset", { label: "Set of pictures", choices: [["", "choose a set"]], why: "A set of four pictures or more. One in four is never trained on: likeness is measured against those." });
  const base = choiceField(settings, "base", { label: "Base", choices: [["", "the server's"]], why: "The model that all of them are trained on." });
  const together = choiceField(settings, "together", { label: "Beside another overlay", choices: [["", "none"]], why: "One that you often use, of those that fit the base: each kind is measured once more with it attached too. It shows what is left of both." });
  const strength = numberField(settings, "together_strength", { label: "Strength of the other", min: -10, max: 10, step: 0.05, why: "How strongly the other overlay acts. Empty: as its notes say, else 1." });
  const problem = h("p.error.form-error", { role: "alert", hidden: true });
  const start = h("button.primary", { type: "submit" }, "Start the study");
  const form = h(
    "form.compare-form",
    { noValidate: true, onsubmit: begin },
    h("p.quiet", {}, "Every kind of overlay is trained on the same pictures in the same time, painted at several strengths, and judged: how near it comes to the pictures, and how much of a prompt it keeps."),
    h(
      "div.fields",
      {},
      dataset,
      choiceField(settings, "purpose", { label: "Preset for", choices: [["style", "a style"], ["subject", "a subject"]], why: "Whose presets are taken: those for a style, or for one thing or person." }),
      base,
      textField(settings, "study", { label: "Name", placeholder: "automatic", why: "A study that was stopped goes on under its name. Empty: the name of the pictures." }),
      numberField(settings, "minutes", { label: "Time", unit: "minutes", min: 1, max: 10080, step: 1, placeholder: String(DEFAULT_MINUTES), why: `Of the whole study, shared evenly. Empty: ${DEFAULT_MINUTES}, enough on the tiny base; give hours on others.` }),
      numberField(settings, "seeds", { label: "Trainings of each kind", min: 1, max: 100, step: 1, why: "3: so that the spread between equal trainings is known. With 1 nothing tells chance from a difference." }),
      together,
      strength,
    ),
    h("fieldset.compare-kinds", {}, h("legend", {}, "Kinds"), Object.entries(KINDS).map(([kind, label]) => checkField(settings, kind, { label }))),
    h("div.row", {}, start),
    problem,
  );
  form.append(hintLine(form, "Each setting explains itself here while it has the focus."));
  const view = studyView();
  const list = h("ul.run-list");
  const earlier = h("section", { hidden: true }, h("h2", {}, "Studies"), list);
  root.classList.add("compare");
  const empty = h("p.quiet", { hidden: true }, "What a study finds appears here: a table that grows with each training, and a report with pictures.");
  root.append(h("h1.unseen", {}, "Compare"), h("div.compare-left", {}, form, earlier), view.element, empty);
  let shown = "";

  /** @param {Event} event */
  async function begin(event) {
    event.preventDefault();
    clearErrors(form);
    if (!checkNumbers(form)) return;
    if (!settings.get("dataset")) {
      showError(form, { message: "Choose pictures first; the tab Train takes new ones.", field: "dataset" });
      return;
    }
    const missing = missingOverlay();
    if (missing) {
      showError(form, { message: missing, field: "together" });
      return;
    }
    start.disabled = true;
    try {
      const job = await submit(toRequest());
      say("The study is in the queue.");
      go("compare", { study: job.request.study });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      showError(form, error.field === "together.strength" ? { message: error.message, field: "together_strength" } : error);
    } finally {
      start.disabled = false;
    }
  }

  async function load() {
    const [sets, bases, studies] = await Promise.all(["datasets", "bases", "studies"].map((path) => get(`api/${path}`).catch(() => null)));
    if (sets) dataset.setChoices([["", "choose a set"], ...sets.map((/** @type {any} */ set) => [set.name, `${set.name}, ${set.pictures} pictures`])]);
    if (bases) base.setChoices(bases.map((/** @type {any} */ other) => [other.is_default ? "" : other.name, other.name]));
    earlier.hidden = !studies?.length;
    fill(list, ...(studies ?? []).map(describe));
  }

  /** @param {any} study */
  function describe(study) {
    const link = h("a", { href: `#compare?study=${encodeURIComponent(study.study)}` }, study.study);
    if (study.study === shown) link.setAttribute("aria-current", "true");
    return h("li", {}, link, h("span.quiet", {}, study.trials ? `${study.trials} trials on ${study.base}` : "no trial yet"));
  }

  function showOverlays() {
    const choices = [...overlaysFor(settings.get("base"))].map(([name, file]) => [name, `${name}, ${OVERLAY_KINDS[/** @type {"lora"} */ (file.kind)]}`]);
    together.setChoices([["", "none"], .../** @type {[string, string][]} */ (choices)]);
    showStrength();
  }

  function showStrength() {
    strength.hidden = !settings.get("together");
    /** @type {HTMLInputElement} */ (strength.querySelector("input")).placeholder = String(usualStrength());
  }

  follow((job) => job.kind === "compare" && hasEnded(job) && !root.hidden && load());
  subscribe(() => !root.hidden && showOverlays());
  settings.subscribe((names) => (names.includes("base") ? showOverlays() : names.includes("together") && showStrength()));
  if (!library.files.length) loadLibrary();
  return {
    /** @param {URLSearchParams} parameters */
    show(parameters) {
      shown = parameters.get("study") ?? "";
      empty.hidden = Boolean(shown);
      load();
      showOverlays();
      view.open(shown);
    },
  };
}

function toRequest() {
  const { values } = settings;
  /** @type {Record<string, any>} */
  const request = { kind: "compare", dataset: values.dataset, kinds: Object.keys(KINDS).filter((kind) => values[kind]), purpose: values.purpose };
  for (const name of ["base", "study", "minutes", "seeds"]) if (values[name]) request[name] = values[name];
  if (values.together) request.together = { name: values.together, strength: values.together_strength ?? usualStrength() };
  return request;
}

/**
 * Return the overlays of the library that fit a base, by what a request calls them: their name, or where that is not theirs
 * alone, their place in the library.
 *
 * @param {string | null} base None: the server's own.
 * @returns {Map<string, import("../library.js").LibraryFile>}
 */
function overlaysFor(base) {
  const isOverlay = (/** @type {import("../library.js").LibraryFile} */ file) => file.kind in OVERLAY_KINDS;
  const files = library.files.filter((file) => isOverlay(file) || file.error); // a damaged file may be one, and has a name too
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const { name } of files) counts.set(name.toLowerCase(), (counts.get(name.toLowerCase()) ?? 0) + 1);
  const fitting = files.filter((file) => isOverlay(file) && !file.error && !misfit(file, base));
  return new Map(fitting.map((file) => [counts.get(file.name.toLowerCase()) === 1 ? file.name : file.place, file]));
}

/** @returns {string} Why the other overlay that is chosen cannot be used, "" if it can or if none is chosen. */
function missingOverlay() {
  const { together, base } = settings.values;
  if (!together || overlaysFor(base).has(together)) return "";
  if (library.isComplete) return "This overlay is not in the library, or does not fit the base: choose another.";
  return library.error || "The library is still loading: try again in a moment.";
}

/** @returns {number} The strength that the notes of the other overlay give, or 1. */
function usualStrength() {
  return overlaysFor(settings.get("base")).get(settings.get("together"))?.strength ?? 1;
}

/** What a study has found, while it goes on and when it is done. */
function studyView() {
  const title = h("h2", {});
  const line = h("p.quiet", {});
  const bar = h("progress", { max: 1, value: 0, hidden: true });
  bar.setAttribute("aria-label", "Progress of this trial");
  const stop = h("button", { type: "button", hidden: true, onclick: () => job && cancel(job.id).catch(refuse) }, "Stop");
  const resume = h("button.primary", { type: "button", hidden: true, onclick: goOn }, "Go on");
  const error = h("p.error", { role: "alert", hidden: true });
  const result = h("p.recommendation", { hidden: true });
  const region = h("div.compare-table", { role: "region", tabIndex: 0, "aria-label": "Scores", hidden: true }); // wider than a phone
  const note = h("p.quiet", { hidden: true });
  const frame = h("div.report-frame");
  const element = h("section.compare-study", { hidden: true }, title, h("div.row", {}, stop, resume), bar, line, error, result, region, note, frame);
  let name = "";
  let trial = "";
  let reported = "";
  /** @type {import("../jobs.js").LiveJob | null} */
  let job = null;

  /** @param {string} wanted */
  async function open(wanted) {
    if (wanted === name) return;
    [name, job, trial, reported] = [wanted, null, "", ""];
    element.hidden = !name;
    error.hidden = true;
    showScores({ kinds: [], together: null });
    fill(frame);
    result.hidden = true;
    if (!name) return;
    job = [...live.values()].find(isOfStudy) ?? null;
    show();
    if (!job) {
      const { jobs } = await get("api/jobs", { kind: "compare", limit: 100 }).catch(() => ({ jobs: [] }));
      if (wanted !== name) return;
      const last = jobs.find(isOfStudy);
      job ??= last ? await watch(last.id).catch(() => last) : null;
      if (wanted !== name) return;
      show();
    }
    look();
  }

  /** @param {any} other */
  function isOfStudy(other) {
    return other.kind === "compare" && other.request.study === name;
  }

  async function look() {
    const wanted = name;
    const study = await get(`api/studies/${encodeURIComponent(wanted)}`).catch(() => null); // there is none before its first trial
    if (wanted !== name) return;
    if (!study && !job) line.textContent = "No study has this name.";
    if (!study) return;
    result.hidden = !study.recommendation;
    result.textContent = study.recommendation ?? "";
    showScores(study);
    const version = `${study.trials}`;
    if (!study.has_report || reported === version) return;
    reported = version;
    const report = h("iframe", { src: `${url(`api/studies/${encodeURIComponent(wanted)}/report`)}?trials=${version}`, title: `Report of the study ${wanted}`, loading: "lazy" });
    report.setAttribute("sandbox", ""); // it runs nothing, and cannot reach the page
    fill(frame, report);
  }

  /** @param {{kinds: any[], together: string | null}} study `together` is another overlay with its strength. */
  function showScores({ kinds, together }) {
    region.hidden = !kinds.length;
    fill(region, kinds.length && scoreTable(kinds, Boolean(together))); // the region stays: it may have the focus
    note.hidden = !kinds.length || !together;
    note.textContent = together
      ? `The score with both is measured with ${together} attached too. Left of the other: how much of that overlay's own change is still there; 1 is all of it, 0 nothing.`
      : "";
  }

  function show() {
    const isOpen = job !== null && !hasEnded(job);
    title.textContent = name;
    stop.hidden = !isOpen;
    resume.hidden = isOpen || !job || job.state === "done";
    bar.hidden = !isOpen;
    bar.value = job?.progress.total ? job.progress.done / job.progress.total : 0;
    const stage = job?.progress.stage ?? "";
    line.textContent = !job ? "" : job.state === "queued" ? "Waiting for the jobs before it." : isOpen ? sentence(stage || trial || "beginning") : job.state === "cancelled" ? "It was stopped; what it found stays." : "";
    error.hidden = !job?.error;
    error.textContent = job?.error?.message ?? "";
  }

  async function goOn() {
    if (!job) return;
    const { kind: _kind, ...request } = job.request;
    try {
      job = await submit({ kind: "compare", ...request });
      show();
    } catch (problem) {
      refuse(problem);
    }
  }

  /** @param {unknown} problem */
  function refuse(problem) {
    if (!(problem instanceof ApiError)) throw problem;
    error.textContent = problem.message;
    error.hidden = false;
  }

  follow((changed, event) => {
    if (!name || !isOfStudy(changed)) return;
    const isNew = job?.id !== changed.id;
    job = changed;
    if (event?.type === "log") trial = event.text;
    show();
    if (isNew || event?.type === "log" || hasEnded(changed)) look();
    if (hasEnded(changed)) say(changed.state === "done" ? `The study ${name} is done.` : `The study ${name} has ended.`);
  });
  return { element, open };
}

/** @param {any[]} kinds @param {boolean} hasOther The study was made with another overlay. */
function scoreTable(kinds, hasOther) {
  const figures = /** @type {(keyof typeof FIGURES)[]} */ (Object.keys(FIGURES)).filter((name) => hasOther || !TOGETHER_FIGURES.includes(name));
  const head = h("tr", {}, h("th", { scope: "col" }, "Kind"), figures.map((name) => h("th", { scope: "col" }, FIGURES[name])), h("th", { scope: "col" }, "Trainings"));
  const rows = kinds.map((row) => h("tr", {}, h("th", { scope: "row" }, KINDS[/** @type {"lora"} */ (row.kind)] ?? row.kind), figures.map((name) => h("td", {}, row[name] || "–")), h("td", {}, row.trials)));
  const caption = h("caption.unseen", {}, "Scores of the kinds so far, of 1; ± is the spread between equal trainings");
  return h("table", {}, caption, h("thead", {}, head), h("tbody", {}, rows));
}

/** @param {string} text */
function sentence(text) {
  return text ? `${text[0].toUpperCase()}${text.slice(1)}` : "";
}
