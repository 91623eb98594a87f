// Models: the model cards with training data, metrics, plots and limits.

import { createRequester, modelTitle, notice, reportErrors } from "./api.js";
import { element, sections } from "./card.js";
import { createElement } from "./format.js";
import { programs } from "./programs.js";

const TITLES = {
  language_model: ({ name }) => modelTitle(name),
  digits: () => "The digit reader",
  numbers: () => "The number reader",
  captions: () => "The captioner",
};
const ORDER = Object.keys(TITLES);
const LIMITATIONS = ["Limitations", "What it is not good at"]; // the latter in cards published before
const RESULTS = ["Results", "Figures"];
const notify = notice(document.getElementById("models-notice"));

/** Initialise the view; all cards are requested at once. */
export function open() {
  return reportErrors(notify, async () => {
    const { models } = await get("models");
    models.sort((a, b) => ORDER.indexOf(a.family) - ORDER.indexOf(b.family) || a.name.localeCompare(b.name));
    const cards = await Promise.all(models.map((one) => (one.ready ? ready(one) : notServed(one))));
    document.getElementById("cards").replaceChildren(...cards);
  });
}

const get = async (path) => (await createRequester(notify)(path)).json();

async function ready({ name }) {
  const model = await get(`models/${encodeURIComponent(name)}`);
  const title = (TITLES[model.family] ?? (() => name))(model);
  const { headline } = model;
  const [first, ...rest] = sections(model.card ?? "");
  const shown = (section) => section.blocks.map((block) => element(block, (file, words) => image(model, file, words)));
  return createElement(
    "article",
    { class: "card" },
    createElement("header", {}, createElement("h2", {}, title), createElement("p", { class: "measure" }, facts(model))),
    createElement("p", { class: "figure" }, ...(headline ? [createElement("strong", {}, headline.text), createElement("span", {}, `${headline.name} ${headline.details}`)] : [])),
    createElement("div", { class: "about" }, ...shown(first), ...aside(rest, shown)),
    ...rest.filter(({ heading }) => LIMITATIONS.includes(heading)).map((section) => createElement("section", { class: "limits" }, createElement("h3", {}, section.heading), ...shown(section))),
    ...rest.filter(({ heading }) => RESULTS.includes(heading)).flatMap((section) => figures(section, shown)),
    ...programs(model),
  );
}

const aside = (rest, shown) =>
  rest.filter(({ heading }) => ![...LIMITATIONS, ...RESULTS].includes(heading)).flatMap((section) => [createElement("h3", {}, section.heading), ...shown(section)]);

/** Show the plots; text and tables are collapsed. */
function figures(section, shown) {
  const parts = shown(section);
  const plots = parts.filter((part) => part.tagName === "FIGURE");
  const rest = parts.filter((part) => part.tagName !== "FIGURE");
  return [
    createElement("div", { class: "pictures" }, ...plots),
    ...(rest.length ? [createElement("details", {}, createElement("summary", {}, "All metrics"), ...rest)] : []),
  ];
}

const facts = (model) =>
  [
    `${model.name} ${model.version}`,
    `${millions(model.parameters)} parameters`,
    `${millions(model.sizes.total)}B on disk`,
    `served in ${model.served}`,
    `published ${model.created.slice(0, 10)}`,
  ].join(" · ");

const millions = (count) => (count < 1e6 ? `${Math.round(count / 1e3)} k` : `${(count / 1e6).toFixed(1)} M`);

function notServed({ name, reason }) {
  return createElement("article", { class: "card" }, createElement("header", {}, createElement("h2", {}, name)), createElement("p", { class: "notice" }, `Not served: ${reason}`));
}

function image(model, file, words) {
  const address = `models/${encodeURIComponent(model.name)}/files/${encodeURIComponent(file)}`;
  const image = createElement("img", { loading: "lazy", alt: words, src: address });
  return createElement("figure", {}, createElement("a", { href: address, target: "_blank", rel: "noopener", "aria-label": `${words}, in full size, in a new tab` }, image), createElement("figcaption", {}, words));
}
