/** One training: its progress, curves and previews while it runs, what came of it, and what to do with it. */

import { ApiError, get, url } from "../api.js";
import { go, say } from "../app.js";
import { fill, h } from "../dom.js";
import { cancel, follow, hasEnded, live, submit, watch } from "../jobs.js";
import { settings as paintSettings } from "../recipe.js";
import { Curves } from "./curves.js";
import { KINDS, duration, known } from "./settings.js";

const LOOK_PAUSE = 3000; // milliseconds between two looks at the run's folder while it trains
export const FOR_TERMINALS = /\bvelatura [a-z]|^(look at|losses|best snapshot) /; // lines with commands and paths
/** With which the lines of a verdict begin. */
export const VERDICT_LABELS = ["ended", "result", "validation loss", "at high noise", "rescues", "effect at strength 1", "little was learned", "strong at strength 1", "strength"];
const STATES = { running: "In training", interrupted: "Stopped", finished: "Finished" };
/** @typedef {import("../jobs.js").LiveJob} Job */

/** @param {() => void} onChange Called when a run begins or ends. */
export function runView(onChange) {
  const curves = new Curves();
  const title = h("h2", {});
  const bar = h("progress", { max: 1, value: 0, hidden: true });
  bar.setAttribute("aria-label", "Progress of the training");
  const line = h("p.quiet", {}); // not a live region: it changes with every step
  const stop = h("button", { type: "button", hidden: true, onclick: end }, "Stop");
  const resume = h("button.primary", { type: "button", hidden: true, onclick: goOn }, "Resume");
  const use = h("button.primary", { type: "button", hidden: true, onclick: take }, "Use now");
  const error = h("p.error", { role: "alert", hidden: true });
  const found = h("p", { hidden: true });
  const guard = h("ul.findings");
  const legend = h("p.quiet.curve-legend", {}, h("span.key-mean", {}, "loss"), h("span.key-validation", {}, "validation loss"), h("span.key-rescue", {}, "went back"), "lower is nearer to the pictures");
  const previews = h("div.previews");
  const verdict = h("details", { hidden: true, open: true }, h("summary", {}, "What the training says of itself"), h("dl.facts"));
  const chart = h("div.chart", { hidden: true }, curves.element, legend);
  const element = h("section.train-run", { hidden: true }, title, h("div.row", {}, stop, resume, use), bar, line, found, error, guard, chart, previews, verdict);
  /** @type {any} */
  let run = null;
  /** @type {Job | null} */
  let job = null;
  let name = "";
  let lookedAt = 0;
  let first = { time: 0, done: 0 };
  let isStopping = false;

  /** @param {string | null} wanted The run's name; null: none. */
  async function open(wanted) {
    if ((wanted ?? "") === name) return;
    name = wanted ?? "";
    [run, job, isStopping] = [null, null, false];
    first = { time: 0, done: 0 };
    curves.clear();
    fill(previews);
    previews.dataset.shown = "";
    error.hidden = true;
    element.hidden = !name;
    if (!name) return;
    job = [...live.values()].find(isOfRun) ?? null;
    show();
    await Promise.all([look(), findJob()]);
    await loadLosses();
  }

  /** @param {Job} other */
  function isOfRun(other) {
    return ["train", "resume"].includes(other.kind) && other.request.run === name;
  }

  async function findJob() {
    if (job) return;
    const wanted = name;
    const lists = await Promise.all(["train", "resume"].map((kind) => get("api/jobs", { kind, limit: 100 }).catch(() => ({ jobs: [] }))));
    const mine = lists.flatMap(({ jobs }) => jobs).filter(isOfRun);
    if (wanted !== name || job) return;
    const last = mine.sort((a, b) => b.number - a.number)[0];
    const found = last ? await watch(last.id).catch(() => last) : null;
    if (wanted !== name || job) return;
    job = found;
    show();
  }

  async function look() {
    const wanted = name;
    lookedAt = Date.now();
    try {
      // It is in the list once it has begun: a training that waits or prepares its pictures has no folder to look at
      const answer = run ? await get(`api/runs/${encodeURIComponent(wanted)}`) : (await get("api/runs")).find((/** @type {any} */ other) => other.run === wanted);
      if (wanted !== name) return;
      run = answer ?? null;
      if (run?.state === "running" && job && hasEnded(job)) window.setTimeout(look, LOOK_PAUSE); // it is being left
    } catch (problem) {
      if (wanted === name) refuse(problem);
    }
    if (wanted === name) show();
  }

  async function loadLosses() {
    if (!run) return;
    const wanted = name;
    const answer = await get(`api/runs/${encodeURIComponent(wanted)}/losses`, { points: 1000 }).catch(() => null);
    if (wanted !== name || !answer) return;
    answer.steps.forEach((/** @type {number} */ step, /** @type {number} */ index) => curves.losses.set(step, answer.losses[index]));
    show();
  }

  function show() {
    const isOpen = job !== null && !hasEnded(job);
    const kind = run?.kind ?? job?.request.overlay?.kind;
    title.textContent = [run?.name ?? job?.request.name ?? name, KINDS[kind]?.title].filter(Boolean).join(" · ");
    stop.hidden = !isOpen;
    stop.disabled = isStopping;
    resume.hidden = isOpen || run?.state !== "interrupted" || !run.snapshots.length;
    use.hidden = !(run?.tag ?? job?.result?.tag);
    use.textContent = run && run.state !== "finished" ? "Use the last snapshot" : "Use now";
    use.classList.toggle("primary", resume.hidden);
    bar.hidden = !isOpen;
    line.textContent = isOpen ? progress(/** @type {Job} */ (job)) : describeEnd();
    found.hidden = run?.strength == null;
    found.textContent = run?.strength == null ? "" : `It serves best at strength ${run.strength}; a tag with it is written beside the file.`;
    const warnings = job?.warnings ?? [];
    fill(guard, ...(run?.rescues ?? []).map(describeRescue), ...warnings.map((text) => h("li", {}, text)));
    curves.total = run?.planned_steps ?? (job?.progress.stage === "training" ? job.progress.total : null) ?? 1;
    curves.validation = Object.entries(run?.validation ?? {}).map(([step, loss]) => [Number(step), Number(loss)]);
    curves.rescues = run?.rescues ?? [];
    chart.hidden = !curves.losses.size;
    curves.draw();
    showPreviews();
    const said = run?.verdict.length ? run.verdict : job?.result?.verdict ?? [];
    const lines = said.filter((/** @type {string} */ text) => !FOR_TERMINALS.test(text));
    verdict.hidden = !lines.length;
    fill(/** @type {HTMLElement} */ (verdict.querySelector("dl")), ...lines.flatMap(verdictRow));
    if (job?.error) {
      error.textContent = job.error.message;
      error.hidden = false;
    }
  }

  /** @param {Job} open */
  function progress(open) {
    const { done, total, stage } = open.progress;
    bar.value = total ? done / total : 0;
    if (isStopping) return "Ending after this step; what it learned stays.";
    if (open.state === "queued") return "Waiting for the jobs before it.";
    if (stage !== "training") return stage ? `${stage[0].toUpperCase()}${stage.slice(1)}${total ? `: ${done} of ${total}` : ""}` : "Beginning ...";
    const loss = curves.losses.get(done);
    const seconds = done > first.done && total ? (((Date.now() - first.time) / 1000) * (total - done)) / (done - first.done) : null;
    return [`Step ${done} of ${total}`, loss !== undefined && `loss ${loss.toPrecision(2)}`, seconds !== null && `${duration(seconds)} left`].filter(Boolean).join(" · ");
  }

  function describeEnd() {
    if (!run && !job) return "No training has this name.";
    if (!run) return job?.state === "cancelled" ? "It was cancelled before its first step." : job?.result?.tag ? "Finished." : "";
    const steps = run.planned_steps && run.steps < run.planned_steps ? `${run.steps} of ${run.planned_steps} steps` : `${run.steps} steps`;
    const validated = run.best_step == null ? "" : `lowest validation loss ${run.best_loss.toPrecision(2)} after ${run.best_step} steps`;
    return [STATES[/** @type {"running"} */ (run.state)], steps, `${duration(run.seconds)} on ${run.base}`, validated].filter(Boolean).join(" · ");
  }

  /** @param {string} text A line of a verdict: a label, and what it says. */
  function verdictRow(text) {
    const label = VERDICT_LABELS.find((candidate) => text.startsWith(`${candidate} `)) ?? "";
    return [h("dt", {}, label && label[0].toUpperCase() + label.slice(1)), h("dd", {}, text.slice(label.length).trim())];
  }

  /** @param {any} rescue */
  function describeRescue({ step, back_to, because, rate }) {
    const slower = rate == null ? "" : `, and goes on at a learning rate of ${rate.toPrecision(2)}`;
    return h("li.warning", {}, `At step ${step} the guard went back to step ${back_to}${slower}: ${because}.`);
  }

  function showPreviews() {
    const rows = Object.entries(run?.previews ?? {}).map(([step, count]) => [Number(step), Number(count)]);
    const wanted = JSON.stringify(rows);
    if (previews.dataset.shown === wanted) return;
    previews.dataset.shown = wanted;
    const address = url(`api/runs/${encodeURIComponent(name)}/previews`);
    const known = new Map([...previews.children].map((child) => [/** @type {HTMLElement} */ (child).dataset.step, child]));
    fill(
      previews,
      ...rows.map(([step, count]) => {
        const old = known.get(String(step));
        if (old) return old; // a picture that is there does not flicker
        const images = Array.from({ length: count }, (_, index) => h("img.small", { src: `${address}/${step}/${index + 1}`, alt: `Preview ${index + 1} after ${step} steps`, loading: "lazy" }));
        return h("figure.preview", { data: { step } }, h("div.preview-row", {}, images), h("figcaption", {}, step ? `${step} steps` : "before"));
      }),
    );
  }

  async function end() {
    if (!job) return;
    isStopping = true;
    show();
    await cancel(job.id).catch(refuse);
  }

  async function goOn() {
    error.hidden = true;
    try {
      job = await submit({ kind: "resume", run: name });
      first = { time: 0, done: 0 };
      show();
    } catch (problem) {
      refuse(problem);
    }
  }

  /** Put the overlay into the prompt of the tab Paint. */
  function take() {
    const given = run?.tag ?? job?.result?.tag;
    const milder = run && run.strength == null ? run.milder_strength : null; // at 1 pictures would lose the prompt
    const tag = milder == null ? given : given.replace(/:[^:>]*>$/, `:${milder}>`);
    const label = tag.replace(/:[^:>]*>$/, ":");
    const prompt = (paintSettings.get("prompt") ?? "").trim();
    const isThere = prompt.includes(label);
    const base = known.bases.find((candidate) => candidate.name === run?.base);
    paintSettings.set({ prompt: isThere ? prompt : `${prompt} ${tag}`.trim(), ...(base ? { base: base.is_default ? null : base.name } : {}) });
    go("paint");
    say(`${tag} is in the prompt.`);
  }

  /** @param {unknown} problem */
  function refuse(problem) {
    if (!(problem instanceof ApiError)) throw problem;
    error.textContent = problem.message;
    error.hidden = false;
    isStopping = false;
  }

  follow((changed, event) => {
    if (!name || !isOfRun(changed)) return;
    const isNews = job?.id !== changed.id || hasEnded(changed);
    job = changed;
    if (event?.type === "step" && event.loss !== undefined) {
      curves.losses.set(event.done, event.loss);
      if (!first.time) first = { time: Date.now(), done: event.done };
    }
    if (hasEnded(changed)) {
      isStopping = false;
      say(changed.state === "done" ? `${name} is trained.` : `${name} has stopped.`);
    }
    if (isNews) onChange();
    show();
    if (isNews || Date.now() - lookedAt > LOOK_PAUSE) look();
  });
  return { element, open };
}
