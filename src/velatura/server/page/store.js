/**
 * What a person typed, by names, in the browser's local storage: it survives reload, crash and error, and two tabs of
 * the browser agree about it.
 */

const PREFIX = "velatura:";
const WRITE_PAUSE = 80; // milliseconds: a key must not wait for the disk

/** Values with names, of which only those that differ from their defaults are stored. */
export class Store {
  /**
   * @param {string} name Of the store: "paint".
   * @param {Record<string, any>} defaults Every value that there is. They must be JSON.
   */
  constructor(name, defaults) {
    this.key = PREFIX + name;
    this.defaults = defaults;
    /** @type {Set<(names: string[]) => void>} */
    this.listeners = new Set();
    this.timer = 0;
    this.values = { ...defaults, ...this.read() };
    window.addEventListener("pagehide", () => this.write());
    window.addEventListener("storage", (event) => {
      if (event.key === this.key || event.key === null) this.take({ ...this.defaults, ...this.read() });
    });
  }

  /** @param {string} name */
  get(name) {
    return this.values[name];
  }

  /** @param {string} name */
  isDefault(name) {
    return same(this.values[name], this.defaults[name]);
  }

  /**
   * Change values, store them, and tell those who subscribed if anything is new.
   *
   * @param {Record<string, any>} changes
   */
  set(changes) {
    if (!this.take(changes)) return;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.write(), WRITE_PAUSE);
  }

  /**
   * Call a function with the names of values that change, here or in another tab.
   *
   * @param {(names: string[]) => void} listener
   */
  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** @param {Record<string, any>} values */
  take(values) {
    const names = Object.keys(values).filter((name) => !same(values[name], this.values[name]));
    Object.assign(this.values, values);
    if (names.length) for (const listener of this.listeners) listener(names);
    return names.length > 0;
  }

  /** @returns {Record<string, any>} */
  read() {
    try {
      const stored = JSON.parse(localStorage.getItem(this.key) ?? "{}");
      return typeof stored === "object" && stored !== null ? stored : {};
    } catch {
      return {}; // storage is off, or holds what is not ours: begin with the defaults
    }
  }

  write() {
    if (!this.timer) return;
    clearTimeout(this.timer);
    this.timer = 0;
    const changed = Object.entries(this.values).filter(([name]) => !this.isDefault(name));
    try {
      localStorage.setItem(this.key, JSON.stringify(Object.fromEntries(changed)));
    } catch {
      // storage is off or full: the page works on, and forgets at the end
    }
  }
}

/** @param {any} left @param {any} right */
function same(left, right) {
  return left === right || JSON.stringify(left) === JSON.stringify(right);
}
