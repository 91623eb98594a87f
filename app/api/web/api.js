// Talks to the server. Of several questions by one asker the newest counts; what can pass by itself is waited for.

import { keyed, keyNow, newKey } from "./key.js";

const PATIENCE = 8; // times that a question is asked before it is given up
const LONGEST = 30; // seconds between them at most, where the server names no time

/** An error in words that a visitor understands. */
export class Failure extends Error {}

/** Whether a newer question, or the visitor, ended this one. */
export const isAbort = (error) => error.name === "AbortError";

/** Asks one kind of question. `tell(words)` says why one has to wait, `tell()` that it is answered. */
export function asker(tell) {
  let underWay = new AbortController();
  const ask = async (path, options = {}) => {
    underWay.abort();
    underWay = new AbortController();
    return patiently(path, options, underWay.signal, tell);
  };
  ask.stop = () => underWay.abort();
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

/** What a view says of its own troubles: words, and a button if the visitor may try again. */
export function notice(element) {
  return (words = "", again = null) => {
    element.replaceChildren(words);
    if (!again) return;
    const button = document.createElement("button");
    button.textContent = "Try again";
    button.addEventListener("click", () => {
      element.replaceChildren();
      again();
    });
    element.append(" ", button);
  };
}

/** Runs `work`; tells its failures, and offers to do it again. */
export async function told(tell, work) {
  try {
    return await work();
  } catch (error) {
    if (isAbort(error)) return null;
    tell(error instanceof Failure ? error.message : `This page failed: ${error.message}.`, () => told(tell, work));
    if (!(error instanceof Failure)) console.error(error);
    return null;
  }
}

async function patiently(path, options, signal, tell) {
  for (let times = 1; ; times++) {
    const key = keyNow();
    const [response, trouble] = await once(path, { ...options, headers: keyed(options.headers, key), signal });
    if (response?.ok) {
      tell();
      return response;
    }
    if (response?.status === 401 || response?.status === 403) {
      await newKey(response.status, key, signal);
      continue;
    }
    if (!trouble) throw await failure(response);
    if (times === PATIENCE) throw new Failure(`${trouble.words} It was tried ${times} times.`);
    const seconds = Math.max(trouble.seconds, Math.min(times, LONGEST));
    tell(`${trouble.words} Trying again in ${seconds} s; nothing is lost.`);
    await pause(seconds, signal);
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

async function failure(response) {
  const problem = await problemOf(response);
  return new Failure(inWords(response.status, problem));
}

/** An error of a status, or of the problem document that a stream told. */
export function inWords(status, { detail = "" } = {}) {
  const because = detail ? ` (${detail})` : "";
  switch (status) {
    case 400:
      return `That could not be read.${because}`;
    case 413:
      return `That is too large.${because}`;
    case 415:
      return `This kind of file is not taken.${because}`;
    case 422:
      return `The server does not accept that.${because}`;
    case 404:
      return `There is no model for this here.${because}`;
    case 504:
      return "That took too long and was given up. A smaller piece may do.";
  }
  return `Something went wrong at the server (${status}). What you made is still here.`;
}

async function problemOf(response) {
  const type = response.headers.get("Content-Type") ?? "";
  return type.includes("json") ? response.json() : {};
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const over = setTimeout(resolve, 1000 * seconds);
    const end = () => {
      clearTimeout(over);
      reject(signal.reason);
    };
    if (signal.aborted) end();
    signal.addEventListener("abort", end, { once: true });
    window.addEventListener("online", resolve, { once: true, signal });
  });
}
