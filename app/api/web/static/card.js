// A model card's Markdown as DOM elements: headings, paragraphs, lists, tables and images; no HTML is interpreted.

import { createElement } from "./format.js";

/** Split a card into sections, in order: each has a heading ("" for the first) and blocks. */
export function sections(markdown) {
  const found = [{ heading: "", blocks: [] }];
  for (const block of markdown.split(/\n{2,}/).flatMap(splitBlock)) {
    const [, level, words] = block.match(/^(#+) (.*)/) ?? [];
    if (level === "##") found.push({ heading: words, blocks: [] });
    else if (level !== "#") found.at(-1).blocks.push(block);
  }
  return found;
}

/** Split headings and images from adjacent lines. */
const splitBlock = (block) => block.trim().split(/\n(?=!\[|#)|(?<=^#.*)\n/).filter(Boolean);

/** Convert a block to an element; `image(name, alt)` creates an image. */
export function element(block, image) {
  const [, words, name] = block.match(/^!\[(.*)\]\((.*)\)$/) ?? [];
  if (name) return image(name, words);
  if (block.startsWith("|")) return table(block.split("\n").map(cells));
  if (block.startsWith("- ")) return createElement("ul", {}, ...block.slice(2).split(/\n- /).map((item) => createElement("li", {}, ...inline(item))));
  if (block.startsWith("#")) return createElement("h3", {}, ...inline(block.replace(/^#+ /, "")));
  return createElement("p", {}, ...inline(block));
}

const cells = (row) => row.replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table([head, , ...rows]) {
  const titles = createElement("tr", {}, ...head.map((cell) => (cell ? createElement("th", { scope: "col" }, ...inline(cell)) : createElement("td"))));
  const body = rows.map(([first, ...others]) =>
    createElement("tr", {}, createElement("th", { scope: "row" }, ...inline(first)), ...others.map((cell) => createElement("td", {}, ...inline(cell)))),
  );
  const grid = createElement("table", {}, createElement("thead", {}, titles), createElement("tbody", {}, ...body));
  return createElement("div", { class: "wide", tabIndex: 0, role: "region", "aria-label": `Table: ${head.filter(Boolean).join(", ")}` }, grid);
}

/** Convert `code` and **strong**; everything else is text. */
function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((piece) => {
    if (piece.startsWith("`")) return createElement("code", {}, piece.slice(1, -1));
    if (piece.startsWith("**")) return createElement("strong", {}, piece.slice(2, -2));
    return piece.replaceAll("\n", " ");
  });
}
