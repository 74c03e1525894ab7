/** Jobs that wait or run, as the server tells of them: one picture of the queue for all tabs. */

import { get, post } from "./api.js";
import { on } from "./events.js";

/**
 * @typedef {object} LiveJob
 * @property {string} id
 * @property {string} kind
 * @property {string} state queued, running, done, failed, cancelled
 * @property {any} request
 * @property {any} result
 * @property {{done: number, total: number | null, stage: string}} progress
 * @property {string[]} warnings
 * @property {any} error
 * @property {Record<string, string>} [previews] Data URLs by the positions of pictures.
 */

/** Jobs that have not ended, by their ids. @type {Map<string, LiveJob>} */
export const live = new Map();

/** @type {Set<(job: LiveJob, event?: any) => void>} */
const followers = new Set();
/** Events that came while a submission had not been answered: perhaps those of its job. @type {any[]} */
const early = [];
/** Jobs that have ended, so that one which is asked for late is not taken for open. @type {Set<string>} */
const over = new Set();
let submitting = 0;

/**
 * Call a function when a job changes.
 *
 * @param {(job: LiveJob, event?: any) => void} listener Gets the job, and the event that changed it, if there is one.
 */
export function follow(listener) {
  followers.add(listener);
  return () => followers.delete(listener);
}

/**
 * Put a job into the queue.
 *
 * @param {any} request With its `kind`.
 * @returns {Promise<LiveJob>}
 */
export async function submit(request) {
  submitting += 1;
  try {
    const job = await post("api/jobs", request);
    live.set(job.id, job);
    tell(job);
    return job;
  } finally {
    submitting -= 1;
    if (!submitting) for (const event of early.splice(0)) update(event);
  }
}

/** @param {string} id A job ends after its current step; what it made stays. */
export function cancel(id) {
  return post(`api/jobs/${id}/cancel`);
}

/**
 * Wait for the end of a job.
 *
 * @param {string} id
 * @returns {Promise<LiveJob>} The job as it ended: look at its `state` and its `error`.
 */
export async function whenOver(id) {
  const job = live.get(id) ?? (await get(`api/jobs/${id}`));
  if (hasEnded(job)) return job;
  return new Promise((resolve) => {
    const stop = follow((changed) => {
      if (changed.id !== id || !hasEnded(changed)) return;
      stop();
      resolve(changed);
    });
  });
}

/** @param {LiveJob} job */
export function hasEnded(job) {
  return ["done", "failed", "cancelled"].includes(job.state);
}

/** Ask for the jobs that are open, and for the end of those that were: after a reload, and after a lost connection. */
async function refresh() {
  const { jobs } = await get("api/jobs?state=queued&state=running&limit=500");
  for (const job of jobs) {
    live.set(job.id, { previews: live.get(job.id)?.previews, ...job });
    tell(job);
  }
  const open = new Set(jobs.map((/** @type {LiveJob} */ job) => job.id));
  for (const id of [...live.keys()].filter((known) => !open.has(known))) {
    const job = await get(`api/jobs/${id}`).catch(() => null);
    if (job && hasEnded(job)) end(job);
  }
}

/** @param {any} event */
async function update(event) {
  const { job: id, type, time: _time, ...data } = event;
  const isEnd = ["done", "failed", "cancelled"].includes(type);
  if (isEnd) over.add(id);
  let job = live.get(id);
  if (!job && submitting) early.push(event);
  else if (!job && type === "queued") {
    const asked = await get(`api/jobs/${id}`).catch(() => null); // of another tab or program
    if (!asked || over.has(id) || hasEnded(asked)) return;
    if (!live.has(id)) live.set(id, asked);
    job = live.get(id);
  }
  if (!job) return;
  if (type === "started") job.state = "running";
  if (type === "interrupted") job.state = "queued";
  if (type === "step") {
    job.state = "running";
    job.progress = { done: data.done, total: data.total, stage: data.stage };
    if (data.previews) job.previews = data.previews;
  }
  if (type === "warning" && !job.warnings.includes(data.message)) job.warnings = [...job.warnings, data.message];
  if (!isEnd) tell(job, event);
  else end({ ...job, state: type, error: type === "failed" ? data : null, result: type === "done" ? data : job.result }, event);
}

/** @param {LiveJob} job @param {any} [event] */
function end(job, event) {
  live.delete(job.id);
  tell(job, event);
}

/** @param {LiveJob} job @param {any} [event] */
function tell(job, event) {
  for (const listener of followers) listener(job, event);
}

for (const type of "queued started step picture log warning interrupted done failed cancelled".split(" ")) {
  on(type, update);
}
on("connection", ({ isOpen }) => isOpen && refresh().catch(() => {}));
