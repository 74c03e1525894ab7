/** A list of thousands of items of one size, of which only those in view are in the page; arrow keys move in it. */

const MORE_ROWS = 2; // above and below what is in view
const KEYS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End", "PageUp", "PageDown"];

/** @template Item */
export class VirtualList {
  /**
   * @param {HTMLElement} scroller An element that scrolls, with a name (aria-label).
   * @param {object} options
   * @param {number} options.height Of an item, in pixels, with the gap below it.
   * @param {number} options.minWidth As many columns as fit at this width.
   * @param {(item: Item) => HTMLElement} options.build The element of an item. The first button or link in it is what
   *   arrow keys move to.
   * @param {(element: HTMLElement, item: Item) => void} [options.update] Brings an element up to date.
   */
  constructor(scroller, { height, minWidth, build, update }) {
    this.scroller = scroller;
    this.height = height;
    this.minWidth = minWidth;
    this.build = build;
    this.update = update;
    /** @type {Item[]} */
    this.items = [];
    /** @type {Map<number, HTMLElement>} */
    this.shown = new Map();
    this.current = 0; // the item that the tab key comes to
    this.columns = 1;
    this.frame = 0;
    this.space = document.createElement("div");
    this.space.className = "virtual-space";
    this.space.setAttribute("role", "list");
    this.space.setAttribute("aria-label", scroller.getAttribute("aria-label") ?? "");
    scroller.removeAttribute("aria-label");
    scroller.classList.add("virtual");
    scroller.append(this.space);
    scroller.addEventListener("scroll", () => this.refresh(), { passive: true });
    scroller.addEventListener("keydown", (event) => this.move(event));
    scroller.addEventListener("focusin", (event) => this.remember(event));
    new ResizeObserver(() => this.refresh()).observe(scroller);
  }

  /** @param {Item[]} items Other items than before: the list begins at its top. */
  setItems(items) {
    this.items = items;
    this.current = 0;
    for (const element of this.shown.values()) element.remove();
    this.shown.clear();
    this.scroller.scrollTop = 0;
    this.refresh();
  }

  /** Show what is in view, and bring it up to date, at the next frame. */
  refresh() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const width = this.space.clientWidth;
    if (!width) return; // hidden
    this.columns = Math.max(1, Math.floor(width / this.minWidth));
    this.space.style.height = `${Math.ceil(this.items.length / this.columns) * this.height}px`;
    const top = Math.floor(this.scroller.scrollTop / this.height) - MORE_ROWS;
    const rows = Math.ceil(this.scroller.clientHeight / this.height) + 2 * MORE_ROWS;
    const first = Math.max(0, top * this.columns);
    const last = Math.min(this.items.length, (Math.max(0, top + MORE_ROWS) + rows) * this.columns);
    for (const [index, element] of this.shown) {
      const isNeeded = (index >= first && index < last) || element.contains(document.activeElement);
      if (isNeeded) continue;
      element.remove();
      this.shown.delete(index);
    }
    for (let index = first; index < last; index += 1) this.place(index, width);
    const held = [...this.shown.keys()].filter((index) => index < first || index >= last);
    for (const index of held) this.place(index, width);
  }

  /** @param {number} index @param {number} width */
  place(index, width) {
    let element = this.shown.get(index);
    if (!element) {
      element = this.build(this.items[index]);
      element.setAttribute("role", "listitem");
      element.setAttribute("aria-posinset", String(index + 1));
      element.dataset.index = String(index);
      this.shown.set(index, element);
      const after = [...this.space.children].find((other) => Number(/** @type {HTMLElement} */ (other).dataset.index) > index);
      this.space.insertBefore(element, after ?? null); // in order: the tab key follows it
    }
    const column = index % this.columns;
    element.setAttribute("aria-setsize", String(this.items.length));
    element.style.width = `${width / this.columns}px`;
    element.style.transform = `translate(${(column * width) / this.columns}px, ${Math.floor(index / this.columns) * this.height}px)`;
    const target = focusTarget(element);
    if (target) target.tabIndex = index === this.current ? 0 : -1;
    this.update?.(element, this.items[index]);
  }

  /** @param {FocusEvent} event */
  remember(event) {
    const element = /** @type {HTMLElement} */ (event.target).closest("[data-index]");
    if (!element) return;
    this.current = Number(/** @type {HTMLElement} */ (element).dataset.index);
    this.refresh();
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    if (!KEYS.includes(event.key) || target.matches("input, textarea, select") || !this.items.length) return;
    event.preventDefault();
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.height)) * this.columns;
    const last = this.items.length - 1;
    const steps = { ArrowUp: -this.columns, ArrowDown: this.columns, ArrowLeft: -1, ArrowRight: 1, Home: -last, End: last, PageUp: -page, PageDown: page };
    const wanted = this.current + steps[/** @type {"Home"} */ (event.key)];
    this.focus(Math.min(last, Math.max(0, wanted)));
  }

  /** @param {number} index */
  focus(index) {
    this.current = index;
    const top = Math.floor(index / this.columns) * this.height;
    const { scrollTop, clientHeight } = this.scroller;
    if (top < scrollTop) this.scroller.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight) this.scroller.scrollTop = top + this.height - clientHeight;
    this.draw();
    const element = this.shown.get(index);
    if (element) focusTarget(element)?.focus({ preventScroll: true });
  }
}

/** @param {HTMLElement} element @returns {HTMLElement | null} */
function focusTarget(element) {
  return element.querySelector("button, a[href]");
}
