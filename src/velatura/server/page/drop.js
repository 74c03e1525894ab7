/** Take files that are dropped on a part of the page. */

/**
 * Call a function with the files that are dropped inside an element.
 *
 * @param {HTMLElement} area Where files can be dropped.
 * @param {HTMLElement} mark Shown as the target meanwhile, by the class "over".
 * @param {(files: File[], transfer: DataTransfer | null) => void} take
 */
export function dropTarget(area, mark, take) {
  let depth = 0; // enter and leave come for every element inside
  const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  const enter = (/** @type {number} */ change) => {
    depth = Math.max(0, depth + change);
    mark.classList.toggle("over", depth > 0);
  };
  area.addEventListener("dragenter", (event) => hasFiles(event) && enter(1));
  area.addEventListener("dragleave", (event) => hasFiles(event) && enter(-1));
  area.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  area.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    enter(-depth);
    take([...(event.dataTransfer?.files ?? [])], event.dataTransfer);
  });
}

// A file that misses its target would replace the page, and what was typed with it
for (const type of ["dragover", "drop"]) window.addEventListener(type, (event) => event.preventDefault());
