// Requests to the server, with the visitor's key and choice of a language model. A new request cancels the previous one of the same requester; transient errors are retried.

import { askKey, keyed, keyGiven, keyNow } from "./key.js";
import { createElement, duration } from "./format.js";
import { restore, session, store } from "./storage.js";

const MAX_ATTEMPTS = 8; // of one request
const MAX_DELAY = 30; // seconds between attempts, unless the server sends Retry-After

const STATUS_MESSAGES = {
  400: "That could not be read.",
  404: "There is no model for this here.",
  413: "That is too large.",
  415: "This kind of file is not taken.",
  422: "The server does not accept that.",
  504: "That took too long and timed out. Try a shorter input.",
};
const PERMANENT = [400, 413, 415, 422]; // a retry would fail again

const MODELS = { everyday: "Everyday English", ptb: "Newspaper of 1989" }; // titles of those published
const MODEL_ORDER = Object.keys(MODELS);
const MODEL_CHANGE = "languagemodel"; // an event of the document, since both views have the switch
const MODEL_SLOT = "model";
let languageModels = null; // a promise of the names of those that are ready; of none if the list can't be read
let chosenModel = restore(MODEL_SLOT);

/** An error with a message for the visitor; `permanent` if a retry cannot succeed. */
export class RequestError extends Error {
  constructor(words, { permanent = false } = {}) {
    super(words);
    this.permanent = permanent;
  }
}

/** Return whether a newer request, or the visitor, cancelled this one. */
export const isAbort = (error) => error.name === "AbortError";

/**
 * Create a function `request(path, options)`; `path` is relative to the page, which may lie under a prefix, `options` are
 * those of `fetch`, or a function that builds them for each attempt. A new request cancels the previous one. `notify(message)` shows why a request is delayed, `notify()` clears it;
 * `messages` maps an error's status to a message for the visitor.
 */
export function createRequester(notify, messages = STATUS_MESSAGES) {
  const gate = { opens: 0, words: "" }; // performance.now() before which nothing is sent (Retry-After), and the message
  let controller = new AbortController();
  const request = async (path, options = {}) => {
    controller.abort();
    controller = new AbortController();
    return requestWithRetries(path, options, { signal: controller.signal, gate, notify, messages });
  };
  request.cancel = () => {
    controller.abort();
    notify();
  };
  return request;
}

/** Send a JSON body and return the JSON answer. */
export async function json(request, path, payload) {
  const response = await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(payload),
  });
  return response.json();
}

/** Return a function that shows a message in `element`, with an optional action {label, act}. */
export function notice(element) {
  return (words = "", offer = null) => {
    if (words === element.textContent) return; // a screen reader has read it already
    element.replaceChildren(words);
    if (!offer) return;
    const button = document.createElement("button");
    button.textContent = offer.label;
    button.addEventListener("click", () => {
      element.replaceChildren();
      offer.act();
    });
    element.append(" ", button);
  };
}

/** Run `work`; show its error with an offer to retry or, if the error is permanent, the action `instead`. */
export async function reportErrors(notify, work, instead = null) {
  try {
    return await work();
  } catch (error) {
    if (isAbort(error)) return null;
    const again = { label: "Try again", act: () => reportErrors(notify, work, instead) };
    if (error instanceof RequestError) notify(error.message, error.permanent ? instead : again);
    else {
      notify(`This page failed: ${error.message}.`, again);
      console.error(error);
    }
    return null;
  }
}

async function requestWithRetries(path, source, { signal, gate, notify, messages }) {
  for (let times = 1; ; times++) {
    await waitForGate(gate, signal, notify);
    await Promise.race([keyGiven(), rejectOnAbort(signal)]);
    const options = typeof source === "function" ? await Promise.race([source(), rejectOnAbort(signal)]) : source;
    const key = keyNow();
    const [response, retry] = await attempt(path, { ...options, headers: { ...keyed(options.headers, key), "X-Session-Id": session }, signal });
    if (response?.ok) {
      notify();
      return response;
    }
    if (response?.status === 401 || response?.status === 403) {
      askKey(response.status, await problemOf(response), key);
      continue;
    }
    if (!retry) throw errorOf(response.status, await problemOf(response), messages);
    if (times === MAX_ATTEMPTS) throw new RequestError(`${retry.words} ${times} attempts failed.`);
    const seconds = Math.max(retry.seconds, Math.min(times, MAX_DELAY));
    const why = `${retry.words} Trying again in ${duration(seconds)}; nothing is lost.`;
    notify(why);
    if (response) Object.assign(gate, { opens: performance.now() + 1000 * seconds, words: why });
    else await pause(1000 * seconds, signal);
  }
}

/** Wait until the gate opens; newer requests wait as well, and only the newest is then sent. */
async function waitForGate(gate, signal, notify) {
  while (gate.opens > performance.now()) {
    notify(gate.words);
    await pause(gate.opens - performance.now(), signal);
  }
}

/** Return the response, if any, and the reason for a retry, if it can succeed. */
async function attempt(path, options) {
  try {
    const response = await fetch(path, options);
    return [response, await retryReason(response)];
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    const words = navigator.onLine ? "The server cannot be reached." : "You are offline.";
    return [null, { words, seconds: 1 }];
  }
}

async function retryReason(response) {
  const seconds = Number(response.headers.get("Retry-After")) || 1;
  if (response.status === 429) return { words: "The rate limit of this server is reached.", seconds };
  if (response.status !== 503) return null;
  const problem = await problemOf(response);
  const starting = problem.type === "/problems/not-ready";
  return { words: starting ? `The model is not ready: ${problem.detail}.` : "The server is busy.", seconds };
}

/** Create the error of a status, or of a problem document in a stream. */
export function errorOf(status, { detail = "" } = {}, messages = STATUS_MESSAGES) {
  const because = status === 422 && detail ? ` (${detail})` : "";
  const message = messages[status] ?? STATUS_MESSAGES[status] ?? `Something went wrong at the server (${status}). Your input is still here.`;
  return new RequestError(message + because, { permanent: PERMANENT.includes(status) });
}

async function problemOf(response) {
  const type = response.headers.get("Content-Type") ?? "";
  return type.includes("json") ? response.json() : {};
}

/** Return a promise that rejects when `signal` aborts, and never resolves. */
function rejectOnAbort(signal) {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/** Wait `time` milliseconds, or until the browser is online again. */
function pause(time, signal) {
  return new Promise((resolve, reject) => {
    const over = setTimeout(resolve, time);
    const end = () => {
      clearTimeout(over);
      reject(signal.reason);
    };
    if (signal.aborted) end();
    signal.addEventListener("abort", end, { once: true });
    window.addEventListener("online", resolve, { once: true, signal });
  });
}

/** Return the title of a language model; a name that is not known is its own. */
export const modelTitle = (name) => MODELS[name] ?? name;

/** Return the fields of a request that name the model; none where the server has only one. */
export const languageModel = () => (chosenModel ? { model: chosenModel } : {});

/** Fill the empty fieldset `group` with a radio button a model; call `changed` after a choice in any view. */
export async function offerModels(group, changed) {
  const names = await (languageModels ??= listLanguageModels());
  if (!names.includes(chosenModel)) chosenModel = names.length > 1 ? names[0] : "";
  if (names.length < 2) return;
  const buttons = names.map((name) => createElement("input", { type: "radio", name: group.id, value: name, checked: name === chosenModel }));
  group.append(...buttons.map((button) => createElement("label", {}, button, modelTitle(button.value))));
  group.hidden = false;
  group.addEventListener("change", ({ target }) => {
    chosenModel = target.value;
    store(MODEL_SLOT, chosenModel);
    document.dispatchEvent(new Event(MODEL_CHANGE));
  });
  document.addEventListener(MODEL_CHANGE, () => {
    for (const button of buttons) button.checked = button.value === chosenModel;
    changed();
  });
}

async function listLanguageModels() {
  try {
    const response = await fetch("models", { headers: keyed({ "X-Session-Id": session }, keyNow()) });
    const { models = [] } = response.ok ? await response.json() : {};
    const names = models.filter((one) => one.ready && one.family === "language_model").map((one) => one.name);
    const place = (name) => (MODEL_ORDER.includes(name) ? MODEL_ORDER.indexOf(name) : MODEL_ORDER.length);
    return names.sort((a, b) => place(a) - place(b));
  } catch {
    return []; // offline; the first request reports it
  }
}
