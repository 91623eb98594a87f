// Pictures that a visitor drops, pastes or chooses, made into what the server takes.

const TAKEN = ["image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif"];
const LARGE = 12 * 2 ** 20; // bytes; the server takes 16 MiB
const SIDE = 2048; // pixels of what is made smaller

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

/** The file as it may be sent: as it is, or, if it is too large or of a type that only the browser knows, as a JPEG. */
export async function sendable(file) {
  if (TAKEN.includes(file.type) && file.size <= LARGE) return file;
  const seen = await createImageBitmap(file).catch(() => null);
  if (!seen) return file; // let the server say what it is
  const scale = Math.min(1, SIDE / Math.max(seen.width, seen.height));
  const canvas = new OffscreenCanvas(Math.round(seen.width * scale), Math.round(seen.height * scale));
  canvas.getContext("2d").drawImage(seen, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
}
