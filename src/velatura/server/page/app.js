/** The page's frame: tabs with their address, the line that says how the server is, and a lost connection. */

import { OFFLINE, get } from "./api.js";
import { h, newId } from "./dom.js";
import { connect, on } from "./events.js";
import { follow, live } from "./jobs.js";
import { TABS } from "./tabs/table.js";

/** @typedef {{tab: HTMLElement, panel: HTMLElement, view: Promise<any> | null, address: string}} Part */

/** @type {Map<string, Part>} */
const parts = new Map();
let shown = "";

/**
 * Show a tab, and write it into the address.
 *
 * @param {string} name
 * @param {Record<string, any>} [parameters] What follows "?" in the address; empty ones are left out.
 * @param {{replace?: boolean}} [options] replace: without a step in the browser's history.
 */
export function go(name, parameters = {}, { replace = false } = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = new URLSearchParams(given.map(([key, value]) => [key, String(value)])).toString();
  const address = text ? `#${name}?${text}` : `#${name}`;
  if (address === location.hash) return;
  history[replace ? "replaceState" : "pushState"](null, "", address);
  showAddress();
}

/**
 * Tell a screen reader, without moving the focus.
 *
 * @param {string} text
 */
export function say(text) {
  const line = byId("announcement");
  line.textContent = "";
  requestAnimationFrame(() => (line.textContent = text));
}

/** @param {string} id */
function byId(id) {
  return /** @type {HTMLElement} */ (document.getElementById(id));
}

function buildTabs() {
  for (const { name, title } of TABS) {
    const panel = h("section.panel", { id: `panel-${name}`, role: "tabpanel", hidden: true });
    const tab = h("button.tab", { id: `tab-${name}`, type: "button", role: "tab", onclick: () => returnTo(name) }, title);
    tab.setAttribute("aria-controls", panel.id);
    panel.setAttribute("aria-labelledby", tab.id);
    byId("tabs").append(tab);
    byId("panel").append(panel);
    parts.set(name, { tab, panel, view: null, address: `#${name}` });
  }
  byId("tabs").addEventListener("keydown", moveAmongTabs);
}

/** @param {string} name The tab comes back with the address that it had. */
function returnTo(name) {
  const { address } = /** @type {Part} */ (parts.get(name));
  if (location.hash !== address) history.pushState(null, "", address);
  showAddress();
}

/** @param {KeyboardEvent} event */
function moveAmongTabs(event) {
  const names = [...parts.keys()];
  const last = names.length - 1;
  const index = names.indexOf(shown);
  const targets = { ArrowRight: index === last ? 0 : index + 1, ArrowLeft: index ? index - 1 : last, Home: 0, End: last };
  if (!(event.key in targets)) return;
  event.preventDefault();
  const name = names[targets[/** @type {"Home"} */ (event.key)]];
  returnTo(name);
  parts.get(name)?.tab.focus();
}

async function showAddress() {
  const [name, query = ""] = decodeHash(location.hash);
  const part = parts.get(name) ?? /** @type {Part} */ (parts.get(TABS[0].name));
  const current = parts.has(name) ? name : TABS[0].name;
  part.address = parts.has(name) ? location.hash : `#${current}`;
  if (shown && shown !== current) {
    const left = /** @type {Part} */ (parts.get(shown));
    left.view?.then((view) => view?.hide?.());
  }
  shown = current;
  for (const [key, { tab, panel }] of parts) {
    tab.setAttribute("aria-selected", String(key === current));
    tab.tabIndex = key === current ? 0 : -1;
    panel.hidden = key !== current;
  }
  document.title = `${TABS.find((tab) => tab.name === current)?.title} · velatura`;
  part.view ??= mount(current, part.panel);
  const view = await part.view;
  if (shown === current) view?.show?.(new URLSearchParams(query));
}

/** @param {string} name @param {HTMLElement} panel */
async function mount(name, panel) {
  try {
    const module = await /** @type {any} */ (TABS.find((tab) => tab.name === name)).load();
    return await module.mount(panel);
  } catch (error) {
    console.error(error);
    const message = "This part of the page could not be loaded: check that the server runs, and load the page again.";
    panel.append(h("p.error", { id: newId("error"), role: "alert" }, message));
    return null;
  }
}

/** @param {string} hash @returns {string[]} */
function decodeHash(hash) {
  const [name, ...rest] = hash.replace(/^#/, "").split("?");
  return [name, rest.join("?")];
}

/** Show a lost connection until it is back. */
function watchConnection() {
  const banner = byId("connection");
  on("connection", ({ isOpen, isBack }) => {
    banner.hidden = isOpen;
    if (!isOpen) banner.textContent = "The server does not answer. The page tries again by itself; what you typed is kept.";
    if (isBack) {
      say("The server is back.");
      for (const error of document.querySelectorAll(".form-error")) if (error.textContent === OFFLINE) /** @type {HTMLElement} */ (error).hidden = true;
    }
    if (isOpen) showSystem();
  });
  window.addEventListener("velatura:unauthorized", () => {
    banner.hidden = false;
    banner.textContent = "The server asks for its token: open the address that velatura serve printed, with ?token= in it.";
  });
}

/** Show the base, its device, and how many jobs wait. */
async function showSystem() {
  try {
    const system = await get("api/system");
    byId("status").dataset.base = system.base ? `${system.base} on ${system.device?.name ?? "?"}` : "opening the base ...";
  } catch {
    return; // the banner tells of it
  }
  showQueue();
}

function showQueue() {
  const jobs = [...live.values()];
  const waiting = jobs.filter((job) => job.state === "queued").length;
  const texts = [byId("status").dataset.base, jobs.length > waiting && "1 running", waiting && `${waiting} waiting`];
  const text = texts.filter(Boolean).join(" · ");
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

function start() {
  const address = new URL(location.href);
  if (address.searchParams.has("token")) {
    address.searchParams.delete("token"); // the cookie has it: keep it out of bookmarks and pictures of the screen
    history.replaceState(null, "", address);
  }
  buildTabs();
  watchConnection();
  follow((job, event) => {
    showQueue();
    if (event?.type === "started" || !live.has(job.id)) showSystem();
  });
  window.addEventListener("popstate", showAddress); // a link to a part of the page and a new hash tell of themselves by it too
  showAddress();
  connect();
  showSystem();
}

start();
