/** Build elements: one function, so that no text is ever read as HTML. */

/**
 * @typedef {Node | string | number | null | undefined | false} Child
 * @typedef {Record<string, any>} Properties
 */

/**
 * Build an element.
 *
 * @param {string} tag Its name, and perhaps classes: "button" or "p.error.small".
 * @param {Properties} [properties] Listeners (onclick), properties and attributes; null and undefined are left out,
 *   and false where there is no such property. `style` is an object, `data` too.
 * @param {...(Child | Child[])} children Nodes and texts; empty ones are left out.
 * @returns {HTMLElement & Record<string, any>}
 */
export function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) setProperty(element, key, value);
  element.append(...present(children));
  return element;
}

/**
 * Replace what is in an element.
 *
 * @param {Element} element
 * @param {...(Child | Child[])} children
 */
export function fill(element, ...children) {
  element.replaceChildren(...present(children));
}

let idCount = 0;

/**
 * Return an id that no other element of the page has.
 *
 * @param {string} name
 */
export function newId(name) {
  idCount += 1;
  return `${name}-${idCount}`;
}

/**
 * Return a function that runs another one once, a while after its last call.
 *
 * @template {any[]} Arguments
 * @param {(...values: Arguments) => void} run
 * @param {number} milliseconds
 * @returns {(...values: Arguments) => void}
 */
export function debounce(run, milliseconds) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = window.setTimeout(() => run(...values), milliseconds);
  };
}

/** @param {(Child | Child[])[]} children @returns {(Node | string)[]} */
function present(children) {
  return children
    .flat()
    .filter((child) => child !== null && child !== undefined && child !== false && child !== "")
    .map((child) => (child instanceof Node ? child : String(child)));
}

/** @param {HTMLElement & Record<string, any>} element @param {string} key @param {any} value */
function setProperty(element, key, value) {
  if (value === null || value === undefined) return;
  if (value === false && typeof element[key] !== "boolean") return;
  if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
  else if (key === "style" || key === "data") Object.assign(key === "style" ? element.style : element.dataset, value);
  else if (key in element && !key.includes("-") && key !== "list" && key !== "role") element[key] = value;
  else element.setAttribute(key, value === true ? "" : value);
}
