// Images that a visitor drops, pastes or chooses, converted to a format that the server accepts.

import { RequestError } from "./api.js";

const TAKEN = ["image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif"];
const READ = "PNG, JPEG, WebP, BMP, GIF and AVIF can be read.";
const LARGE = 12 * 2 ** 20; // bytes; the server accepts 16 MiB
const SIDE = 2048; // longer side of a downscaled image, in pixels

/** Messages for the errors of image requests, by status. */
export const IMAGE_ERRORS = {
  400: `That is not an image, or it is damaged. ${READ}`,
  413: "That image is too large. Up to 16 MB and 25 million pixels can be read.",
  415: `That kind of file is not supported. ${READ}`,
};

/** The action offered for an unreadable image: choose another in `input`. */
export const chooseAnother = (input) => ({ label: "Choose another", act: () => input.click() });

/** Call `take(file)` for each file dropped on `zone` or chosen in `inputs`, and, while `zone` is shown, each pasted one. */
export function onImage(zone, inputs, take) {
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

/** Return `fetch`'s options for uploading an image. */
export const uploadOptions = (image, headers = {}) => ({
  method: "POST",
  headers: { "Content-Type": image.type || "image/*", ...headers },
  body: image,
});

/**
 * Return the file unchanged, or as a JPEG if it is too large or of a type that only the browser can decode.
 * Throw a RequestError that names an unsupported file.
 */
export async function toUploadable(file) {
  const taken = TAKEN.includes(file.type);
  if (taken && file.size <= LARGE) return file;
  const seen = await createImageBitmap(file).catch(() => null);
  if (seen) return downscaled(seen);
  if (taken) return file; // the server reports the error
  throw new RequestError(unreadable(file), { permanent: true });
}

function downscaled(seen) {
  const scale = Math.min(1, SIDE / Math.max(seen.width, seen.height));
  const canvas = new OffscreenCanvas(Math.round(seen.width * scale), Math.round(seen.height * scale));
  canvas.getContext("2d").drawImage(seen, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
}

function unreadable({ name, type }) {
  if (/hei[cf]/.test(type) || /\.hei[cf]$/i.test(name)) {
    return `“${name}” is a HEIC photograph, as phones keep them, and this browser can't open it. Save it as JPEG and choose that.`;
  }
  return `“${name}” is not an image that can be read. ${READ}`;
}
