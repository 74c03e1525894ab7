/** Compare: train every kind of overlay alike on the same pictures, watch it, and read which one serves best. */

import { ApiError, get, url } from "../api.js";
import { go, say } from "../app.js";
import { fill, h } from "../dom.js";
import { checkField, checkNumbers, choiceField, clearErrors, hintLine, numberField, showError, textField } from "../fields.js";
import { cancel, follow, hasEnded, live, submit, watch } from "../jobs.js";
import { Store } from "../store.js";

const KINDS = { embedding: "Embedding", hypernet: "Hypernetwork", lora: "LoRA", dreambooth: "DreamBooth", aesthetic: "Aesthetic gradient" };
const DEFAULT_MINUTES = 12;
const FIGURES = { score: "Score", likeness: "Likeness", kept: "Prompt kept", strength: "Best strength" };

const settings = new Store("compare", {
  dataset: null,
  base: null,
  study: "",
  purpose: "style",
  seeds: 3,
  minutes: null,
  ...Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, true])),
});

/** @param {HTMLElement} root */
export function mount(root) {
  const dataset = choiceField(settings, "dataset", { label: "Set of pictures", choices: [["", "choose a set"]], why: "A set of four pictures or more. One in four is never trained on: likeness is measured against those." });
  const base = choiceField(settings, "base", { label: "Base", choices: [["", "the server's"]], why: "The model that all of them are trained on." });
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
    start.disabled = true;
    try {
      const job = await submit(toRequest());
      say("The study is in the queue.");
      go("compare", { study: job.request.study });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      showError(form, error);
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

  follow((job) => job.kind === "compare" && hasEnded(job) && !root.hidden && load());
  return {
    /** @param {URLSearchParams} parameters */
    show(parameters) {
      shown = parameters.get("study") ?? "";
      empty.hidden = Boolean(shown);
      load();
      view.open(shown);
    },
  };
}

function toRequest() {
  const { values } = settings;
  /** @type {Record<string, any>} */
  const request = { kind: "compare", dataset: values.dataset, kinds: Object.keys(KINDS).filter((kind) => values[kind]), purpose: values.purpose };
  for (const name of ["base", "study", "minutes", "seeds"]) if (values[name]) request[name] = values[name];
  return request;
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
  const table = h("div.compare-table");
  const frame = h("div.report-frame");
  const element = h("section.compare-study", { hidden: true }, title, h("div.row", {}, stop, resume), bar, line, error, result, table, frame);
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
    fill(table);
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
    fill(table, study.kinds.length > 0 && scores(study.kinds));
    const version = `${study.trials}`;
    if (!study.has_report || reported === version) return;
    reported = version;
    const report = h("iframe", { src: `${url(`api/studies/${encodeURIComponent(wanted)}/report`)}?trials=${version}`, title: `Report of the study ${wanted}`, loading: "lazy" });
    report.setAttribute("sandbox", ""); // it runs nothing, and cannot reach the page
    fill(frame, report);
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

/** @param {any[]} kinds */
function scores(kinds) {
  const head = h("tr", {}, h("th", { scope: "col" }, "Kind"), Object.values(FIGURES).map((label) => h("th", { scope: "col" }, label)), h("th", { scope: "col" }, "Trainings"));
  const rows = kinds.map((row) => h("tr", {}, h("th", { scope: "row" }, KINDS[/** @type {"lora"} */ (row.kind)] ?? row.kind), Object.keys(FIGURES).map((name) => h("td", {}, row[name] || "–")), h("td", {}, row.trials)));
  return h("table", {}, h("caption.unseen", {}, "Scores of the kinds so far, of 1; ± is the spread between equal trainings"), h("thead", {}, head), h("tbody", {}, rows));
}

/** @param {string} text */
function sentence(text) {
  return text ? `${text[0].toUpperCase()}${text.slice(1)}` : "";
}
