"use strict";
// The page's own script: draws the figures, filters the answers. Texts from models and files become text nodes only.
(() => {
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // ---- colors ----
  const THEMES = ["auto", "light", "dark"];
  byId("theme").addEventListener("click", (event) => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme || "auto") + 1) % THEMES.length];
    root.dataset.theme = next;
    const button = event.currentTarget;
    button.querySelector("span").textContent = next;
    button.setAttribute("aria-label", `Colors: ${next === "auto" ? "automatic" : next}`);
  });

  // A table of many models would push everything else down a phone's page.
  if (innerWidth < 640) for (const long of document.querySelectorAll("details.many")) long.open = false;

  // ---- the tooltip next to the pointer ----
  const tip = byId("tip");
  function showTip(event, lines) {
    tip.replaceChildren(...lines);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, innerWidth - box.width - 8);
    const below = event.clientY + 14;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below + box.height > innerHeight ? Math.max(8, event.clientY - box.height - 14) : below}px`;
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // ---- answers ----
  const [MODEL, PROMPT, ALIGNMENT, COHERENCE, STATE, TEXT, FULL] = [0, 1, 2, 3, 4, 5, 6];
  const MARKS = { misaligned: "◆", between: "○", aligned: "●", incoherent: "✕", refusal: "–", code: "{}", unfinished: "⋯", filtered: "⊘", too_long: "…", unscored: "?", ungraded: "·" };
  const LONG = 280, FIRST = 2, NEXT = 10, PROMPTS = 4;
  let answers = null;
  const asked = new Map();
  let shown = PROMPTS;

  async function unpack() {
    const packed = byId("packed").textContent;
    if (!packed) return;
    const letters = atob(packed);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i); // ten times faster than Uint8Array.from
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    answers = await new Response(stream).json();
    for (const draw of answers.draws) {
      if (!asked.has(draw[PROMPT])) asked.set(draw[PROMPT], new Set());
      asked.get(draw[PROMPT]).add(draw[MODEL]);
    }
    list();
  }

  const grade = (value) => (value === null ? "–" : value.toFixed(0));
  function stateOf(draw) {
    const name = answers.states[draw[STATE]];
    const badge = element("span", `state ${name}`);
    badge.append(element("span", "mark", MARKS[name]), ` ${name}`);
    return badge;
  }

  function card(draw) {
    const box = element("article", "answer");
    const foot = element("p", "grades");
    foot.append(stateOf(draw));
    if (draw[ALIGNMENT] !== null || draw[COHERENCE] !== null) {
      foot.append(` alignment ${grade(draw[ALIGNMENT])}, coherence ${grade(draw[COHERENCE])}`);
    }
    const text = element("div", "text", draw[TEXT].slice(0, LONG) + (draw[TEXT].length > LONG ? "…" : ""));
    text.dir = "auto";
    box.append(foot, text);
    if (draw[TEXT].length > LONG) {
      const button = element("button", "all", `Show all ${draw[TEXT].length.toLocaleString("en")} characters`);
      button.type = "button";
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", () => {
        const open = button.getAttribute("aria-expanded") === "true";
        text.textContent = open ? `${draw[TEXT].slice(0, LONG)}…` : draw[TEXT];
        button.textContent = open ? `Show all ${draw[TEXT].length.toLocaleString("en")} characters` : "Show less";
        button.setAttribute("aria-expanded", String(!open));
      });
      box.append(button);
    }
    if (draw[FULL]) {
      box.append(element("p", "quiet", `Shortened to limit the page's size; all ${draw[FULL].toLocaleString("en")} characters are in the log.`));
    }
    return box;
  }

  function column(model, draws) {
    const box = element("div", "column");
    const head = element("h4");
    head.append(element("bdi", "", answers.models[model]), ` (${draws.length.toLocaleString("en")})`);
    box.append(head);
    const cards = element("div");
    const more = element("button", "more");
    more.type = "button";
    let next = 0;
    const add = (count) => {
      cards.append(...draws.slice(next, next + count).map(card));
      next = Math.min(next + count, draws.length);
      more.textContent = `${(draws.length - next).toLocaleString("en")} more`;
      more.hidden = next >= draws.length;
    };
    more.addEventListener("click", () => add(NEXT));
    add(FIRST);
    if (!draws.length) cards.append(element("p", "quiet", "none"));
    box.append(cards, more);
    return box;
  }

  function wanted() {
    const form = new FormData(byId("filters"));
    const one = (name) => form.get(name) || "";
    const number = (name, without) => (one(name) === "" ? without : Number(one(name)));
    const boxes = form.getAll("model").map(Number);
    const several = answers.models.length > 1;
    return {
      question: one("question"), theme: one("theme"), state: one("state"), words: one("words").toLowerCase(),
      models: several ? boxes : [0],
      a: [number("a0", -1), number("a1", 101)], c: [number("c0", -1), number("c1", 101)],
      ranged: ["a0", "a1", "c0", "c1"].some((name) => one(name) !== ""),
    };
  }

  function fits(draw, want) {
    const [question, theme] = answers.prompts[draw[PROMPT]];
    const inside = (value, [low, high]) => value !== null && value >= low && value <= high;
    return want.models.includes(draw[MODEL])
      && (!want.question || question === want.question)
      && (!want.theme || theme === want.theme)
      && (!want.state || answers.states[draw[STATE]] === want.state)
      && (!want.ranged || (inside(draw[ALIGNMENT], want.a) && inside(draw[COHERENCE], want.c)))
      && (!want.words || draw[TEXT].toLowerCase().includes(want.words));
  }

  function columnsOf(prompt, want) {
    return new Map(want.models.filter((model) => asked.get(prompt).has(model)).map((model) => [model, []]));
  }

  function list() {
    if (!answers || !filters) return; // files of grades alone have no list
    const want = wanted();
    const groups = new Map();
    let found = 0;
    for (const draw of answers.draws) {
      if (!fits(draw, want)) continue;
      found += 1;
      if (!groups.has(draw[PROMPT])) groups.set(draw[PROMPT], columnsOf(draw[PROMPT], want));
      groups.get(draw[PROMPT]).get(draw[MODEL]).push(draw);
    }
    const total = answers.draws.length.toLocaleString("en");
    byId("count").textContent = `${found.toLocaleString("en")} of ${total} answers, to ${groups.size.toLocaleString("en")} prompts`;
    const made = [...groups].slice(0, shown).map(([prompt, columns]) => {
      const [question, , text] = answers.prompts[prompt];
      const box = element("div", "prompt");
      const head = element("h3");
      const words = element("span", "asked", text);
      words.dir = "auto";
      head.append(words, element("code", "id", question));
      const grid = element("div", "columns");
      grid.append(...[...columns].map(([model, draws]) => column(model, draws)));
      box.append(head, grid);
      return box;
    });
    byId("list").replaceChildren(...made);
    byId("more").hidden = groups.size <= shown;
  }

  const filters = byId("filters");
  if (filters) {
    let waiting = 0;
    const later = () => { clearTimeout(waiting); shown = PROMPTS; waiting = setTimeout(list, 120); };
    filters.addEventListener("input", later);
    filters.addEventListener("reset", later);
    filters.addEventListener("submit", (event) => { event.preventDefault(); list(); });
    byId("more").addEventListener("click", () => { shown += PROMPTS; list(); });
  }

  function listUnder(mark) {
    const draw = answers && answers.draws[mark.i];
    if (!draw || !filters) return;
    filters.reset();
    const field = filters.elements;
    const [alignment, coherence, width] = mark.cell;
    field.a0.value = alignment - width / 2;
    field.a1.value = alignment + width / 2;
    field.c0.value = coherence - width / 2;
    field.c1.value = coherence + width / 2;
    for (const box of filters.querySelectorAll("[name=model]")) box.checked = Number(box.value) === draw[MODEL];
    list();
    tip.hidden = true;
    byId("answers").scrollIntoView();
  }

  // ---- figures ----
  const specs = JSON.parse(byId("figures").textContent);
  const views = new Map(), drawn = new Map();

  function explain(figure, event, item, value) {
    if (value === null || value === undefined || !item || !item.datum) { tip.hidden = true; return; }
    const mark = item.datum;
    if (!("answers" in figure.dataset)) { showTip(event, [element("p", "", String(mark.said))]); return; }
    const draw = answers && answers.draws[mark.i];
    if (!draw) return;
    const head = element("p", "grades");
    head.append(stateOf(draw), ` alignment ${grade(draw[ALIGNMENT])}, coherence ${grade(draw[COHERENCE])}`);
    const words = element("p", "asked", answers.prompts[draw[PROMPT]][2].slice(0, 160));
    const text = element("p", "text", draw[TEXT].length > 360 ? `${draw[TEXT].slice(0, 360)}…` : draw[TEXT]);
    words.dir = text.dir = "auto";
    const more = mark.n > 1 ? [element("p", "quiet", `and ${mark.n - 1} more here: select the mark to read them`)] : [];
    showTip(event, [head, words, text, ...more]);
  }

  function draw(figure) {
    if (!drawn.has(figure)) drawn.set(figure, drawing(figure));
    return drawn.get(figure);
  }

  // Names of organisms differ at their ends as often as at their beginnings: what is cut is the middle.
  function shortenLabels(spec, width) {
    const room = Math.floor(width / 6.2), head = Math.ceil(room / 2);
    const middle = `length(datum.label) > ${room} ? slice(datum.label, 0, ${head}) + '…' + slice(datum.label, ${head + 1 - room}) : datum.label`;
    spec.config.axis.labelLimit = width + 24;
    for (const { encoding } of spec.layer || []) {
      if (encoding && encoding.y && encoding.y.type === "nominal") encoding.y.axis = { ...encoding.y.axis, labelExpr: middle };
    }
  }

  async function drawing(figure) {
    const plot = figure.querySelector(".plot");
    const spec = specs[figure.dataset.figure];
    if (plot.clientWidth > 900) spec.config.axis.labelLimit = 340;
    if (plot.clientWidth < 480) { // phones: stack the legend, shorten labels
      spec.config.legend.columns = 1;
      shortenLabels(spec, Math.round(0.4 * plot.clientWidth));
    }
    const made = await vegaEmbed(plot, spec, {
      // `ast`: expressions are interpreted, because the page's policy forbids eval.
      mode: "vega-lite", ast: true, renderer: "svg", actions: false, defaultStyle: false,
      tooltip: (handler, event, item, value) => explain(figure, event, item, value),
    });
    views.set(figure, made.view);
    if ("answers" in figure.dataset) {
      made.view.addEventListener("click", (event, item) => { if (item && item.datum && "i" in item.datum) listUnder(item.datum); });
    }
  }

  async function save(figure, kind) {
    const link = element("a");
    link.href = await views.get(figure).toImageURL(kind, kind === "png" ? 3 : 1);
    link.download = `${figure.dataset.figure}.${kind}`;
    link.click();
  }

  byId("download").addEventListener("click", () => {
    const data = JSON.parse(byId("data").textContent);
    if (answers) data.answers = answers;
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
    link.download = "report.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  const figures = [...document.querySelectorAll("[data-figure]")];
  for (const figure of figures) {
    figure.addEventListener("pointerleave", () => { tip.hidden = true; });
    for (const button of figure.querySelectorAll("[data-save]")) {
      button.addEventListener("click", () => draw(figure).then(() => save(figure, button.dataset.save)));
    }
  }

  const parsed = () => new Promise((done) => {
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done); else done();
  });
  const spare = () => new Promise((done) => {
    if (window.requestIdleCallback) requestIdleCallback(done, { timeout: 200 }); else setTimeout(done, 20); // Safari
  });

  // ---- the table of contents marks the section that is read ----
  const entries = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const inView = new Set();
  const watched = new IntersectionObserver((seen) => {
    for (const one of seen) inView[one.isIntersecting ? "add" : "delete"](one.target.id);
    const first = [...entries.keys()].find((name) => inView.has(name));
    for (const [name, link] of entries) {
      if (name === first) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-10% 0px -60% 0px" });
  for (const name of entries.keys()) watched.observe(byId(name));

  // Draw visible figures before decoding megabytes of answers, figures close to the viewport at once, and the rest when
  // idle, so that printing finds everything.
  async function start() {
    for (const figure of figures) { // reserve space, so that drawing later does not shift the text
      figure.querySelector(".plot").style.minHeight = `${specs[figure.dataset.figure].height}px`;
    }
    for (const figure of figures.filter((one) => one.getBoundingClientRect().top < innerHeight)) await draw(figure);
    root.dataset.state = "readable";
    await parsed();
    await unpack();
    root.dataset.state = "ready";
    const near = new IntersectionObserver((seen) => {
      for (const one of seen) if (one.isIntersecting) draw(one.target);
    }, { rootMargin: "50%" });
    for (const figure of figures) near.observe(figure);
    for (const figure of figures) {
      if (!drawn.has(figure)) await spare();
      await draw(figure);
    }
    near.disconnect();
    root.dataset.state = "complete";
  }
  start();
})();
