/** Train: pictures, what to train, the training as it goes, and all that were. */

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { trainingForm } from "../train/form.js";
import { picturesPart } from "../train/pictures.js";
import { runView } from "../train/run.js";
import { KINDS } from "../train/settings.js";

const STATES = { running: "in training", interrupted: "stopped", finished: "finished" };

/** @param {HTMLElement} root */
export function mount(root) {
  const list = h("ul.run-list");
  const earlier = h("section.train-runs", { hidden: true }, h("h2", {}, "Trainings"), list);
  const view = runView(listRuns);
  root.classList.add("train");
  root.append(h("h1.unseen", {}, "Train"), picturesPart(), h("div.train-right", {}, trainingForm(), view.element, earlier));
  let shown = "";

  async function listRuns() {
    const runs = await get("api/runs").catch(() => null);
    if (!runs) return; // the banner tells of it
    earlier.hidden = !runs.length;
    fill(list, ...runs.map(describe));
  }

  /** @param {any} run */
  function describe(run) {
    const link = h("a", { href: `#train?run=${encodeURIComponent(run.run)}` }, run.name);
    if (run.run === shown) link.setAttribute("aria-current", "true");
    const state = STATES[/** @type {"running"} */ (run.state)];
    const steps = run.planned_steps ? `${run.steps} of ${run.planned_steps} steps` : `${run.steps} steps`;
    return h("li", {}, link, h("span.quiet", {}, [KINDS[run.kind]?.title ?? run.kind, state, steps].join(" · ")));
  }

  return {
    /** @param {URLSearchParams} parameters */
    show(parameters) {
      shown = parameters.get("run") ?? "";
      listRuns();
      view.open(shown || null);
    },
  };
}
