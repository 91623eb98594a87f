// The views of the page: the URL's hash selects one; its module is loaded when it is first shown.

const views = ["write", "score", "draw", "caption", "models"];
const titles = { write: "Write", score: "Score", draw: "Draw", caption: "Caption", models: "Models" };
const loaded = new Map();

const tab = (view) => document.getElementById(`tab-${view}`);
const panel = (view) => document.getElementById(`view-${view}`);

function chosen() {
  const view = location.hash.slice(1);
  return views.includes(view) ? view : views[0];
}

async function show() {
  const shown = chosen();
  for (const view of views) {
    tab(view).setAttribute("aria-selected", String(view === shown));
    tab(view).tabIndex = view === shown ? 0 : -1;
    panel(view).hidden = view !== shown;
  }
  document.title = `${titles[shown]} · seqserve`;
  if (!loaded.has(shown)) loaded.set(shown, import(`./${shown}.js`).then((module) => module.open()));
  try {
    await loaded.get(shown);
    panel(shown).dataset.ready = "true";
  } catch (error) {
    loaded.delete(shown);
    document.getElementById(`${shown}-notice`).textContent = "This part of the page did not load. Choose it again to retry.";
    throw error;
  }
}

function step(event) {
  const here = views.indexOf(chosen());
  const there = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: views.length - 1 }[event.key];
  if (there === undefined) return;
  event.preventDefault();
  const view = views.at(there % views.length);
  location.hash = view;
  tab(view).focus();
}

// A file dropped outside a view's drop zone must not replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
document.querySelector("[role=tablist]").addEventListener("keydown", step);
window.addEventListener("hashchange", () => {
  window.scrollTo(0, 0);
  show();
});
show();
