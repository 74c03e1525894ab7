/** Jobs that wait or run, as the server tells of them: one picture of the queue for all tabs. */

import { ApiError, get, post } from "./api.js";
import { TYPES, on } from "./events.js";

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
const END_STATES = ["done", "failed", "cancelled"]; // and the types of the events that end a job
const FORGOTTEN = "The server does not know this job any more: start it again.";
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
  const job = await watch(id);
  if (hasEnded(job)) return job;
  return new Promise((resolve) => {
    const stop = follow((changed) => {
      if (changed.id !== id || !hasEnded(changed)) return;
      stop();
      resolve(changed);
    });
  });
}

/**
 * Follow a job that this page perhaps does not know yet, so that its progress and its end are told.
 *
 * @param {string} id
 * @returns {Promise<LiveJob>} The job as it is.
 */
export async function watch(id) {
  const known = live.get(id);
  if (known) return known;
  const asked = await get(`api/jobs/${id}`);
  if (hasEnded(asked)) return asked;
  if (over.has(id)) return get(`api/jobs/${id}`); // it ended while the answer was on its way
  const job = live.get(id) ?? asked;
  live.set(id, job);
  return job;
}

/** @param {LiveJob} job */
export function hasEnded(job) {
  return END_STATES.includes(job.state);
}

/** Ask for the jobs that are open, and for the end of those that were: after a reload, and after a lost connection. */
async function refresh() {
  const { jobs } = await get("api/jobs?state=queued&state=running&limit=500");
  for (const job of jobs) {
    live.set(job.id, { previews: live.get(job.id)?.previews, ...job });
    tell(job);
  }
  const open = new Set(jobs.map((/** @type {LiveJob} */ job) => job.id));
  for (const [id, known] of [...live].filter(([candidate]) => !open.has(candidate))) {
    const job = await get(`api/jobs/${id}`).catch((problem) => {
      const isForgotten = problem instanceof ApiError && problem.status === 404; // another server answers now
      return isForgotten ? { ...known, state: "failed", error: { code: "not_found", message: FORGOTTEN } } : null;
    });
    if (job && hasEnded(job)) end(job);
  }
}

/** @param {any} event */
async function update(event) {
  const { job: id, type, time: _time, ...data } = event;
  const isEnd = END_STATES.includes(type);
  if (isEnd) over.add(id);
  let job = live.get(id);
  if (!job && submitting) early.push(event);
  else if (!job && type === "queued") {
    const asked = await watch(id).catch(() => null); // of another tab or program
    if (!asked || over.has(id) || hasEnded(asked)) return;
    job = asked;
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

for (const type of TYPES) on(type, update);
on("connection", ({ isOpen }) => isOpen && refresh().catch(() => {}));
