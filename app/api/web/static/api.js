// Talks to the server. Of several questions by one asker the newest counts; what can pass by itself is waited for.

import { askKey, keyed, keyGiven, keyNow } from "./key.js";
import { duration } from "./shown.js";

const PATIENCE = 8; // times that a question is asked before it is given up
const LONGEST = 30; // seconds between them at most, where the server names no time

const WORDS = {
  400: "That could not be read.",
  404: "There is no model for this here.",
  413: "That is too large.",
  415: "This kind of file is not taken.",
  422: "The server does not accept that.",
  504: "That took too long and was given up. A smaller piece may do.",
};
const HOPELESS = [400, 413, 415, 422]; // the same would fail again

/** An error in words that a visitor understands; `hopeless` if trying again does not mend it. */
export class Failure extends Error {
  constructor(words, { hopeless = false } = {}) {
    super(words);
    this.hopeless = hopeless;
  }
}

/** Whether a newer question, or the visitor, ended this one. */
export const isAbort = (error) => error.name === "AbortError";

/**
 * Asks one kind of question: `ask(path, question)`, where `question` is what `fetch` takes beside the path, or a function
 * that makes it anew for each try. The newest counts, however long an older one took to be made.
 * `tell(words)` says why one has to wait, `tell()` that it is answered; `words` are a visitor's for an error's status.
 */
export function asker(tell, words = WORDS) {
  const gate = { opens: 0, words: "" }; // performance.now() before which the server wants to hear nothing, and why
  let underWay = new AbortController();
  const ask = async (path, question = {}) => {
    underWay.abort();
    underWay = new AbortController();
    return patiently(path, question, { signal: underWay.signal, gate, tell, words });
  };
  ask.stop = () => {
    underWay.abort();
    tell();
  };
  return ask;
}

/** A question whose body and answer are JSON. */
export async function json(ask, path, question) {
  const response = await ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(question),
  });
  return response.json();
}

/** What a view says of its own troubles: words, and what the visitor may do, as {label, act}. */
export function notice(element) {
  return (words = "", offer = null) => {
    if (words === element.textContent) return; // a screen reader has said it
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

/** Runs `work`; tells its failures, and offers to do it again or, where that is hopeless, what there is `instead`. */
export async function told(tell, work, instead = null) {
  try {
    return await work();
  } catch (error) {
    if (isAbort(error)) return null;
    const again = { label: "Try again", act: () => told(tell, work, instead) };
    if (error instanceof Failure) tell(error.message, error.hopeless ? instead : again);
    else {
      tell(`This page failed: ${error.message}.`, again);
      console.error(error);
    }
    return null;
  }
}

async function patiently(path, question, { signal, gate, tell, words }) {
  for (let times = 1; ; times++) {
    await opened(gate, signal, tell);
    await Promise.race([keyGiven(), ended(signal)]);
    const options = typeof question === "function" ? await Promise.race([question(), ended(signal)]) : question;
    const key = keyNow();
    const [response, trouble] = await once(path, { ...options, headers: keyed(options.headers, key), signal });
    if (response?.ok) {
      tell();
      return response;
    }
    if (response?.status === 401 || response?.status === 403) {
      askKey(response.status, await problemOf(response), key);
      continue;
    }
    if (!trouble) throw failure(response.status, await problemOf(response), words);
    if (times === PATIENCE) throw new Failure(`${trouble.words} It was tried ${times} times.`);
    const seconds = Math.max(trouble.seconds, Math.min(times, LONGEST));
    const why = `${trouble.words} Trying again in ${duration(seconds)}; nothing is lost.`;
    tell(why);
    if (response) Object.assign(gate, { opens: performance.now() + 1000 * seconds, words: why });
    else await pause(1000 * seconds, signal);
  }
}

/** Waits until the gate is open; newer questions wait as well, and the newest alone is then sent. */
async function opened(gate, signal, tell) {
  while (gate.opens > performance.now()) {
    tell(gate.words);
    await pause(gate.opens - performance.now(), signal);
  }
}

/** The response, if there is one, and what is the matter if it can pass by itself. */
async function once(path, options) {
  try {
    const response = await fetch(path, options);
    return [response, await passing(response)];
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    const words = navigator.onLine ? "The server cannot be reached." : "You are offline.";
    return [null, { words, seconds: 1 }];
  }
}

async function passing(response) {
  const seconds = Number(response.headers.get("Retry-After")) || 1;
  if (response.status === 429) return { words: "That was more than this server lets one visitor ask.", seconds };
  if (response.status !== 503) return null;
  const problem = await problemOf(response);
  const starting = problem.type === "/problems/not-ready";
  return { words: starting ? `The model is not ready: ${problem.detail}.` : "The server is busy.", seconds };
}

/** An error of a status, or of the problem document that a stream told. */
export function failure(status, { detail = "" } = {}, words = WORDS) {
  const because = status === 422 && detail ? ` (${detail})` : "";
  const told = words[status] ?? WORDS[status] ?? `Something went wrong at the server (${status}). What you made is still here.`;
  return new Failure(told + because, { hopeless: HOPELESS.includes(status) });
}

async function problemOf(response) {
  const type = response.headers.get("Content-Type") ?? "";
  return type.includes("json") ? response.json() : {};
}

/** Rejects when `signal` aborts, and never resolves. */
function ended(signal) {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/** Waits so many milliseconds, or until the browser is online again. */
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
