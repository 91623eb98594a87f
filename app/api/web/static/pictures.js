// Pictures that a visitor drops, pastes or chooses, made into what the server takes.

import { Failure } from "./api.js";

const TAKEN = ["image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif"];
const READ = "PNG, JPEG, WebP, BMP and GIF can be read.";
const LARGE = 12 * 2 ** 20; // bytes; the server takes 16 MiB
const SIDE = 2048; // pixels of what is made smaller

/** What an error's status says of a picture. */
export const PICTURE_WORDS = {
  400: `That is no picture that can be read, or a damaged one. ${READ}`,
  413: "That picture is too large. Up to 16 MB and 25 million pixels can be read.",
  415: `That is no kind of picture that can be read. ${READ}`,
};

/** What is offered in place of a picture that can't be read: to choose another in `input`. */
export const anotherIn = (input) => ({ label: "Choose another", act: () => input.click() });

/** Calls `take(file)` for each file dropped on `zone` or chosen in `inputs`, and, while `zone` is shown, each pasted. */
export function received(zone, inputs, take) {
  const offered = (files) => files.length && take(files[0]);
  for (const kind of ["dragenter", "dragover"]) zone.addEventListener(kind, () => zone.classList.add("over"));
  for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => offered(event.dataTransfer.files));
  document.addEventListener("paste", (event) => zone.hidden || offered(event.clipboardData.files));
  for (const input of inputs) {
    input.addEventListener("change", () => {
      offered(input.files);
      input.value = ""; // the same file may be chosen again
    });
  }
}

/** The question that a picture is: `fetch`'s options. */
export const posted = (picture, headers = {}) => ({
  method: "POST",
  headers: { "Content-Type": picture.type || "image/*", ...headers },
  body: picture,
});

/**
 * The file as it may be sent: as it is, or, if it is too large or of a type that only the browser knows, as a JPEG.
 * Throws a Failure that names what neither knows.
 */
export async function sendable(file) {
  const taken = TAKEN.includes(file.type);
  if (taken && file.size <= LARGE) return file;
  const seen = await createImageBitmap(file).catch(() => null);
  if (seen) return smaller(seen);
  if (taken) return file; // let the server say what is the matter
  throw new Failure(unreadable(file), { hopeless: true });
}

function smaller(seen) {
  const scale = Math.min(1, SIDE / Math.max(seen.width, seen.height));
  const canvas = new OffscreenCanvas(Math.round(seen.width * scale), Math.round(seen.height * scale));
  canvas.getContext("2d").drawImage(seen, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
}

function unreadable({ name, type }) {
  if (/hei[cf]/.test(type) || /\.hei[cf]$/i.test(name)) {
    return `“${name}” is a HEIC photograph, as phones keep them, and this browser can't open it. Save it as JPEG and choose that.`;
  }
  return `“${name}” is no picture that can be read. ${READ}`;
}
