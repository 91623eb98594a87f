// "Use it from your program": one request as curl and as Python clients, with this server's address.

import { createElement } from "./format.js";

const TEXT = "The company said it";
const address = () => new URL(".", location.href).href.replace(/\/$/, "");
const quoted = JSON.stringify; // a string literal of JSON is one of Python too

const FAMILIES = {
  language_model: (at, name) => ({
    curl: `curl ${at}/next-word -H 'Content-Type: application/json' \\\n  -d '{"model": ${quoted(name)}, "text": ${quoted(TEXT)}}'`,
    openai: python(
      "import openai",
      `client = openai.OpenAI(base_url="${at}/v1", api_key="none")`,
      `answer = client.completions.create(model=${quoted(name)}, prompt=${quoted(TEXT)}, max_tokens=1, temperature=0, logprobs=5)`,
      "print(answer.choices[0].logprobs.top_logprobs[0])",
    ),
    tritonclient: triton(at, name, "text", `${quoted(TEXT)}`, "suggestions"),
    seqserve: python("import seqserve", `client = seqserve.Client("${at}")`, `print(client.next_word(${quoted(TEXT)}, model=${quoted(name)}).suggestions)`),
  }),
  digits: (at, name) => ({
    curl: `curl '${at}/digits?model=${encodeURIComponent(name)}' -F image=@digit.png`,
    huggingface_hub: python(
      "from huggingface_hub import InferenceClient",
      `print(InferenceClient(model="${at}/models/${encodeURIComponent(name)}").image_classification("digit.png"))`,
    ),
    tritonclient: triton(at, name, "image", 'open("digit.png", "rb").read()', "digit"),
    seqserve: python("import seqserve", `print(seqserve.Client("${at}").digits("digit.png", model=${quoted(name)}).results)`),
  }),
  numbers: (at, name) => ({
    curl: `curl '${at}/digits?number=true' -F image=@number.png`,
    tritonclient: triton(at, name, "image", 'open("number.png", "rb").read()', "number"),
    seqserve: python("import seqserve", `print(seqserve.Client("${at}").digits("number.png", number=True).results)`),
  }),
  captions: (at, name) => ({
    curl: `curl '${at}/captions?model=${encodeURIComponent(name)}' -F image=@photo.jpg`,
    openai: python(
      "import base64, openai",
      `client = openai.OpenAI(base_url="${at}/v1", api_key="none")`,
      'url = "data:;base64," + base64.b64encode(open("photo.jpg", "rb").read()).decode()',
      'messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]',
      `print(client.chat.completions.create(model=${quoted(name)}, messages=messages).choices[0].message.content)`,
    ),
    tritonclient: triton(at, name, "image", 'open("photo.jpg", "rb").read()', "caption"),
    seqserve: python("import seqserve", `print(seqserve.Client("${at}").captions("photo.jpg", model=${quoted(name)}).results)`),
  }),
};

const python = (...lines) => lines.join("\n");

function triton(at, name, tensor, value, output) {
  return python(
    "import numpy, tritonclient.http as triton",
    `tensor = triton.InferInput("${tensor}", [1], "BYTES")`,
    `tensor.set_data_from_numpy(numpy.array([${value}], object))`,
    `client = triton.InferenceServerClient("${at.replace(/^https?:\/\//, "")}"${at.startsWith("https") ? ", ssl=True" : ""})`,
    `print(client.infer(${quoted(name)}, [tensor]).as_numpy("${output}"))`,
  );
}

/** Return the panel of a model, as a list of one element; none for another family. */
export function programs({ family, name }) {
  const examples = FAMILIES[family]?.(address(), name);
  if (!examples) return [];
  const parts = Object.entries(examples).flatMap(([client, text]) => [createElement("h3", {}, client, " ", copier(client, text)), createElement("pre", { tabIndex: 0, role: "region", "aria-label": client }, text)]);
  const key = "Where the server needs a key, send it as api_key, token or Authorization: Bearer.";
  return [createElement("details", { class: "programs" }, createElement("summary", {}, "Use it from your program"), ...parts, createElement("p", { class: "measure" }, key))];
}

/** Return a button that copies a text; where the browser allows no copying, it selects the text. */
function copier(client, text) {
  const button = createElement("button", { type: "button", "aria-label": `Copy ${client}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.parentElement.nextElementSibling);
    }
  });
  return button;
}
