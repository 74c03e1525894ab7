/** Send dropped or chosen files to a dataset of the server, a few at a time. */

import { ApiError, post, remove } from "../api.js";

const FILES_AT_ONCE = 16;
const BYTES_AT_ONCE = 48 * 2 ** 20; // so that progress is seen, and a lost connection loses little
const MAX_NAMES = 1000;
const DEFAULT_NAME = "pictures";

/**
 * Return the files of a drop, those in dropped folders too.
 *
 * @param {File[]} files As the browser lists them: a folder is one of them that cannot be read.
 * @param {DataTransfer | null} transfer
 * @returns {Promise<{files: File[], name?: string}>} With the name of the first folder, if there is one.
 * @throws {ApiError} A folder cannot be read.
 */
export async function droppedFiles(files, transfer) {
  const entries = [...(transfer?.items ?? [])].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const folder = entries.find((entry) => entry?.isDirectory);
  if (!folder) return { files };
  const found = await Promise.all(entries.map((entry) => filesOf(/** @type {any} */ (entry)))).catch(() => {
    throw new ApiError(0, { code: "unreadable", message: `The folder ${folder.name} could not be read: choose its pictures instead.` });
  });
  return { files: found.flat().filter((file) => /\.(png|jpe?g|webp|txt)$/i.test(file.name)), name: folder.name };
}

/** @param {any} entry @returns {Promise<File[]>} */
async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = /** @type {any[]} */ (await new Promise((resolve, reject) => reader.readEntries(resolve, reject)));
    if (!some.length) return found.flat();
    found.push(...(await Promise.all(some.filter((child) => !child.name.startsWith(".")).map(filesOf))));
  }
}

/**
 * Send files.
 *
 * @param {File[]} files
 * @param {string | null} into The name of a dataset; null: a new one.
 * @param {string | undefined} folder What a new one is called, if that name is free and plain.
 * @param {(done: number) => void} onProgress
 * @returns {Promise<{name: string, stored: number, refused: Record<string, string>}>}
 */
export async function upload(files, into, folder, onProgress) {
  const name = into ?? (await create(folder));
  const result = { name, stored: 0, refused: {} };
  for (let start = 0; start < files.length; ) {
    onProgress(start);
    const form = new FormData();
    let bytes = 0;
    let end = start;
    while (end < files.length && end - start < FILES_AT_ONCE && (end === start || bytes + files[end].size <= BYTES_AT_ONCE)) {
      form.append("files", files[end], files[end].name);
      bytes += files[end].size;
      end += 1;
    }
    const answer = await post(`api/datasets/${encodeURIComponent(name)}/files`, form);
    result.stored += answer.files.length;
    Object.assign(result.refused, answer.refused);
    start = end;
  }
  if (!into && !result.stored) await remove(`api/datasets/${encodeURIComponent(name)}`); // nothing came into it
  return result;
}

/** @param {string} [folder] @returns {Promise<string>} The name of a new dataset. */
async function create(folder = DEFAULT_NAME) {
  const plain = folder.replace(/[^\w .()+=,@-]+/g, "-").replace(/^[\W_]+|[ .]+$/g, "").slice(0, 80) || DEFAULT_NAME;
  for (let number = 1; number <= MAX_NAMES; number += 1) {
    try {
      return (await post("api/datasets", { name: number === 1 ? plain : `${plain}-${number}` })).name;
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 409) throw error;
    }
  }
  throw new ApiError(409, { code: "already_exists", message: `${MAX_NAMES} sets are called ${plain}: choose another folder` });
}
