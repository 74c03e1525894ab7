/** Speak to /api: JSON in and out, and every refusal as one line with the field that it is about. */

/** A request that was refused or not answered. */
export class ApiError extends Error {
  /**
   * @param {number} status HTTP status; 0: the server did not answer.
   * @param {{code: string, message: string, field?: string | null}} detail
   */
  constructor(status, detail) {
    super(detail.message);
    this.status = status;
    this.code = detail.code;
    this.field = detail.field ?? null;
  }
}

export const OFFLINE = "The server does not answer. What you typed is kept; try again once it is back.";

/**
 * Return the address of a path of the server, also where the page is not at the root of its host.
 *
 * @param {string} path Without a slash before it: "api/jobs".
 */
export function url(path) {
  return new URL(path, document.baseURI.split("#")[0]).href;
}

/** @param {string} path @param {Record<string, any>} [query] Parameters; undefined and "" are left out. */
export function get(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const text = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return request("GET", text ? `${path}?${text}` : path);
}

/**
 * Return a file of the server.
 *
 * @param {string} path
 * @returns {Promise<Blob>}
 * @throws {ApiError}
 */
export async function getBlob(path) {
  const response = await send("GET", path);
  try {
    return await response.blob();
  } catch {
    throw offline();
  }
}

/** @param {string} path @param {any} [body] Sent as JSON; a Blob, File or FormData is sent as it is. */
export function post(path, body) {
  return request("POST", path, body);
}

/** @param {string} path @param {any} body */
export function put(path, body) {
  return request("PUT", path, body);
}

/** @param {string} path @param {any} body */
export function patch(path, body) {
  return request("PATCH", path, body);
}

/** @param {string} path */
export function remove(path) {
  return request("DELETE", path);
}

/**
 * Send a request and return the JSON of its answer, null if that is empty.
 *
 * @param {string} method
 * @param {string} path
 * @param {any} [body]
 * @returns {Promise<any>}
 * @throws {ApiError}
 */
async function request(method, path, body) {
  const response = await send(method, path, body);
  let text;
  try {
    text = await response.text();
  } catch {
    throw offline(); // the connection was lost in the middle of the answer
  }
  return text ? JSON.parse(text, keepLongNumber) : null;
}

/**
 * Send a request and return its answer.
 *
 * @param {string} method
 * @param {string} path
 * @param {any} [body]
 * @returns {Promise<Response>}
 * @throws {ApiError}
 */
async function send(method, path, body) {
  const isRaw = body instanceof Blob || body instanceof FormData;
  /** @type {RequestInit} */
  const options = { method, headers: {} };
  if (body !== undefined) options.body = isRaw ? body : JSON.stringify(body);
  if (body !== undefined && !isRaw) options.headers = { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(url(path), options);
  } catch {
    throw offline();
  }
  if (response.ok) return response;
  if (response.status === 401) window.dispatchEvent(new Event("velatura:unauthorized"));
  const text = await response.text().catch(() => "");
  throw new ApiError(response.status, readError(response.status, text));
}

function offline() {
  return new ApiError(0, { code: "offline", message: OFFLINE });
}

/**
 * Keep a whole number that JavaScript cannot hold, such as a seed of ComfyUI, as a text; the server reads both.
 *
 * @param {string} _key
 * @param {any} value
 * @param {{source?: string}} [context]
 */
function keepLongNumber(_key, value, context) {
  const isLong = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
  return isLong && /^-?\d+$/.test(context?.source ?? "") ? context?.source : value;
}

/** @param {number} status @param {string} text */
function readError(status, text) {
  try {
    const { error } = JSON.parse(text);
    if (error?.message) return error;
  } catch {
    // an answer that is not ours, such as a proxy's
  }
  return { code: `http_${status}`, message: `The server answered with status ${status}: its log says why.` };
}
