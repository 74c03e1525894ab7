/**
 * Follow the events of all jobs. A lost connection is noticed, mended by itself, and what was missed is replayed.
 *
 * Types: queued, started, step, picture, log, warning, interrupted, done, failed, cancelled (docs/server.md), and
 * "connection" with {isOpen, isBack, hasGap}: when it opens, when it is lost; isBack when it opens after a loss, hasGap when
 * it opens again for any reason. Events that came meanwhile are replayed only if one was seen before: after a gap ask anew.
 */

import { url } from "./api.js";

export const TYPES = "queued started step picture log warning interrupted done failed cancelled".split(" ");
const FIRST_PAUSE = 500; // milliseconds before the next try; doubled up to the longest one
const LONGEST_PAUSE = 8000;
const HIDDEN_PAUSE = 30_000; // a browser has six connections to a server: a tab that nobody sees gives its one back

/** @type {Map<string, Set<(data: any) => void>>} */
const listeners = new Map();
/** @type {EventSource | null} */
let source = null;
let lastId = "";
let hasOpened = false;
let pause = FIRST_PAUSE;
let isOpen = true; // until it turns out otherwise: a page that has just been loaded has met its server
let timer = 0;
let hiddenTimer = 0;

/**
 * Call a function at each event of a type.
 *
 * @param {string} type
 * @param {(data: any) => void} listener Its argument has `job`, `type`, `time` and the data of the event.
 * @returns {() => void} Stops it.
 */
export function on(type, listener) {
  const all = listeners.get(type) ?? new Set();
  listeners.set(type, all.add(listener));
  return () => all.delete(listener);
}

/** Begin to follow; call it once. */
export function connect() {
  open();
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiddenTimer);
    if (!document.hidden && source === null) open();
    if (document.hidden) hiddenTimer = window.setTimeout(close, HIDDEN_PAUSE);
  });
  window.addEventListener("online", () => !isOpen && open());
}

function open() {
  close();
  source = new EventSource(url(lastId ? `api/events?last_id=${lastId}` : "api/events"));
  source.onopen = () => {
    pause = FIRST_PAUSE;
    report(true);
  };
  source.onerror = () => {
    report(false);
    close(); // the browser gives up on some errors and not on others: we always try again
    timer = window.setTimeout(open, pause);
    pause = Math.min(pause * 2, LONGEST_PAUSE);
  };
  for (const type of TYPES) {
    source.addEventListener(type, (event) => {
      lastId = event.lastEventId || lastId;
      emit(type, JSON.parse(event.data));
    });
  }
}

function close() {
  clearTimeout(timer);
  source?.close();
  source = null;
}

/** @param {boolean} isNowOpen */
function report(isNowOpen) {
  const isBack = isNowOpen && !isOpen;
  if (!isNowOpen && !isOpen) return; // told already
  const hasGap = isNowOpen && hasOpened;
  isOpen = isNowOpen;
  hasOpened ||= isNowOpen;
  emit("connection", { isOpen, isBack, hasGap });
}

/** @param {string} type @param {any} data */
function emit(type, data) {
  for (const listener of listeners.get(type) ?? []) listener(data);
}
