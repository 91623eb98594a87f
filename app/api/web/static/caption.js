// Caption: a photograph, and its caption, streamed word by word.

import { createRequester, RequestError, errorOf, isAbort, notice, reportErrors } from "./api.js";
import { copyText } from "./storage.js";
import { chooseAnother, IMAGE_ERRORS, uploadOptions, onImage, toUploadable } from "./images.js";
import { createElement, milliseconds, share } from "./format.js";

const at = (id) => document.getElementById(id);
const image = at("photo-image");
const sentence = at("caption-sentence");
const notify = notice(at("caption-notice"));
const request = createRequester(notify, IMAGE_ERRORS);

/** Initialise the view. */
export function open() {
  onImage(at("view-caption"), [at("photo-file"), at("photo-camera")], show);
  at("caption-copy").addEventListener("click", (event) => copyText(event.target, image.alt));
  image.addEventListener("error", () => shown(false)); // the server may decode what the browser can't show
}

function show(file) {
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.alt = "Your photograph";
  shown(true);
  notify();
  return reportErrors(notify, () => described(file), chooseAnother(at("photo-file")));
}

function shown(can) {
  image.hidden = !can;
  at("photo-empty").hidden = can;
}

function begin() {
  sentence.replaceChildren();
  for (const id of ["caption-announcement", "caption-time"]) at(id).textContent = "";
  for (const id of ["caption-copy", "others"]) at(id).hidden = true;
}

/** Caption a photograph; clear a partial caption on errors. */
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
  const response = await request("captions?alternatives=4&people=neutral", async () => {
    const upload = await toUploadable(file);
    started = performance.now();
    return uploadOptions(upload, { Accept: "text/event-stream" });
  });
  let first = 0;
  for await (const { event, data } of events(response.body)) {
    if (event === "error") throw errorOf(data.status, data, IMAGE_ERRORS);
    first ||= performance.now() - started;
    if (event === "word") add(data.word);
    if (event === "caption") finish(data.results[0]);
  }
  if (at("caption-copy").hidden) throw new RequestError("The answer was cut off.");
  at("caption-time").textContent = `First word after ${milliseconds(first)}, all of it after ${milliseconds(performance.now() - started)}.`;
}

/** Yield the server-sent events of a body as they arrive. */
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
  const piece = createElement("span", {}, word);
  piece.style.setProperty("--place", sentence.children.length);
  sentence.append(piece, " ");
}

function finish(result) {
  const labels = [...new Set(result.tags.map((tag) => tag.label))].join(", ");
  const text = result.caption ?? (labels ? `Unsure; may show: ${labels}` : "Unsure what this shows");
  if (sentence.textContent.trim() !== text) {
    sentence.replaceChildren();
    text.split(" ").forEach(add);
  }
  image.alt = text;
  at("caption-announcement").textContent = text;
  at("caption-copy").hidden = false;
  at("others").hidden = !result.alternatives.length;
  at("others-list").replaceChildren(...result.alternatives.map(other));
}

function other({ caption, log_probability }) {
  const copy = createElement("button", { "aria-label": `Copy: ${caption}` }, "Copy");
  copy.addEventListener("click", () => copyText(copy, caption));
  return createElement("li", {}, createElement("span", {}, caption), createElement("span", { class: "share", title: "probability of this exact sentence" }, share(Math.exp(log_probability))), copy);
}
