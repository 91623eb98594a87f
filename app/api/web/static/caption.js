// Caption: a photograph, and under it a sentence that comes word by word.

import { asker, Failure, failure, isAbort, notice, told } from "./api.js";
import { copied } from "./kept.js";
import { anotherIn, PICTURE_WORDS, posted, received, sendable } from "./pictures.js";
import { made, milliseconds, share } from "./shown.js";

const at = (id) => document.getElementById(id);
const image = at("photo-image");
const sentence = at("caption-sentence");
const tell = notice(at("caption-notice"));
const ask = asker(tell, PICTURE_WORDS);

/** Begins. */
export function open() {
  received(at("view-caption"), [at("photo-file"), at("photo-camera")], show);
  at("caption-copy").addEventListener("click", (event) => copied(event.target, image.alt));
  image.addEventListener("error", () => shown(false)); // what the browser can't show, the server may yet read
}

function show(file) {
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.alt = "Your photograph";
  shown(true);
  tell();
  return told(tell, () => described(file), anotherIn(at("photo-file")));
}

function shown(can) {
  image.hidden = !can;
  at("photo-empty").hidden = can;
}

function begin() {
  sentence.replaceChildren();
  for (const id of ["caption-told", "caption-time"]) at(id).textContent = "";
  for (const id of ["caption-copy", "others"]) at(id).hidden = true;
}

/** No answer, nor a part of one, stays beside a photograph that it is not of. */
async function described(file) {
  begin();
  try {
    await describe(file);
  } catch (error) {
    if (!isAbort(error)) begin();
    throw error;
  }
}

async function describe(file) {
  let started = 0;
  const response = await ask("/captions?alternatives=4", async () => {
    const picture = await sendable(file);
    started = performance.now();
    return posted(picture, { Accept: "text/event-stream" });
  });
  let first = 0;
  for await (const { event, data } of events(response.body)) {
    if (event === "error") throw failure(data.status, data, PICTURE_WORDS);
    first ||= performance.now() - started;
    if (event === "word") add(data.word);
    if (event === "caption") finish(data.results[0]);
  }
  if (at("caption-copy").hidden) throw new Failure("The answer broke off.");
  at("caption-time").textContent = `First word after ${milliseconds(first)}, all of it after ${milliseconds(performance.now() - started)}.`;
}

/** The server-sent events of a body, as they arrive. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split(/\r?\n/).map((line) => line.split(/: ?(.*)/s)));
      if (fields.data) yield { event: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

function add(word) {
  const piece = made("span", {}, word);
  piece.style.setProperty("--place", sentence.children.length);
  sentence.append(piece, " ");
}

function finish(result) {
  if (sentence.textContent.trim() !== result.caption) {
    sentence.replaceChildren();
    result.caption.split(" ").forEach(add);
  }
  image.alt = result.caption;
  at("caption-told").textContent = result.caption;
  at("caption-copy").hidden = false;
  at("others").hidden = !result.alternatives.length;
  at("others-list").replaceChildren(...result.alternatives.map(other));
}

function other({ caption, log_probability }) {
  const copy = made("button", { "aria-label": `Copy: ${caption}` }, "Copy");
  copy.addEventListener("click", () => copied(copy, caption));
  return made("li", {}, made("span", {}, caption), made("span", { class: "share", title: "the chance of this very sentence" }, share(Math.exp(log_probability))), copy);
}
