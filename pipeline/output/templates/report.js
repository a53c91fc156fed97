"use strict";
// The report's page: controls, cards, pages and the large view over the rows of rows.js.
// Texts of a run enter the document as text nodes and attributes of pictures only.

const PAGE_SIZE = { objects: 60, images: 24 };
const PALETTE = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]; // as annotate.py
const SVG = "http://www.w3.org/2000/svg";
const TYPING_MS = 120;

const at = (id) => document.getElementById(id);
let rows = null;
let version = null;
let shown = new Uint32Array(); // the rows that fit, in order
let items = []; // what the cards show: rows, or images
let page = 0;
let opened = null; // the item of the large view
let boxesOn = true;
const hiddenBoxes = new Set(); // rows
const wanted = { text: "", choices: {}, ranges: {}, reason: null, sort: null, descending: false, view: "images" };

/** An element with properties and children; a text becomes a text node. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("data-") || name.startsWith("aria-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function drawn(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function problem(text) {
  at("problem").textContent = text;
  at("problem").hidden = false;
}

// --- the rows ---------------------------------------------------------------------------------------------------------

/** Called by about.js. */
function begin(text, about) {
  version = about;
  rows = new Rows(JSON.parse(text));
  makeControls();
  const parts = Array.from({ length: rows.about.chunks }, (_, number) => number);
  at("found").textContent = "loading";
  for (const number of parts) {
    const script = make("script", { src: `report/rows-${number}.js?${version}`, async: false });
    script.onerror = () => problem(`report/rows-${number}.js is missing: copy the whole folder, or make the report again`);
    document.head.append(script);
  }
  if (!parts.length) refresh();
}

/** Called by each chunk. */
function take(text, of) {
  if (of !== version) {
    problem("The page and its rows are of two different reports: load the page again, or make the report again.");
    return;
  }
  const first = rows.loaded === 0;
  rows.take(JSON.parse(text));
  if (rows.loaded === rows.about.rows) {
    document.body.dataset.loaded = "all";
    refresh(true);
    prepare(rows.columns.map((column) => column.name));
  } else if (first) refresh();
}

/** Rank the rows by each column while nobody asks for anything, so that the first sort is as quick as the next. */
function prepare(names) {
  const idle = window.requestIdleCallback ?? ((act) => setTimeout(act, TYPING_MS));
  if (names.length) {
    idle(() => {
      rows.ranks(names[0]);
      prepare(names.slice(1));
    });
  }
}

/** The fields of the answers, without the confidences, which stand beside them. */
const fields = () => rows.about.fields.filter((name) => !isConfidence(name));
const isConfidence = (name) => name.endsWith("_confidence") && rows.about.fields.includes(name.slice(0, -11));

function answer(row, name) {
  const value = rows.text(rows.named[name], row);
  const confidence = rows.named[`${name}_confidence`];
  const share = confidence && isConfidence(confidence.name) ? confidence.rows[row] : NaN;
  return value === null || Number.isNaN(share) ? value : `${value} (${Math.round(100 * share)}%)`;
}

/** What a row's card and box say: the answers, why it failed, or that there is nothing. */
function said(row) {
  const outcome = rows.text(rows.named.outcome, row);
  if (outcome === "failed") return rows.text(rows.named.reason, row) ?? "failed";
  if (outcome === "no_object") return `no ${rows.about.label}`;
  const answers = fields().map((name) => answer(row, name)).filter((value) => value !== null).join(", ");
  return several("label") ? `${rows.text(rows.named.label, row)}: ${answers}` : answers;
}

/** As `caption` in report.py: the name of a box. */
function caption(row) {
  const label = rows.text(rows.named.label, row);
  if (rows.text(rows.named.outcome, row) === "failed") return `${label}: failed`;
  const ordered = rows.about.summary ? [rows.about.summary, ...fields()] : fields();
  const counted = ordered.map((name) => rows.text(rows.named[name], row)).find((value) => value !== null);
  if (counted === undefined) return label;
  return several("label") ? `${label}: ${counted}` : counted;
}

/** As in report.py: what has one colour, the label where there are several. */
const kind = (row) => (several("label") ? rows.text(rows.named.label, row) : caption(row));

function colour(text) {
  let crc = -1;
  for (const byte of new TextEncoder().encode(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return PALETTE[((crc ^ -1) >>> 0) % PALETTE.length];
}

const several = (name) => rows.named[name].values.length > 1;
const percent = (score) => (Number.isNaN(score) ? "" : score.toFixed(2));

// --- controls ---------------------------------------------------------------------------------------------------------

function makeControls() {
  const controls = at("controls");
  const labelled = (text, control, className = "") => make("label", { className }, text, control);
  const search = make("input", { type: "search", id: "search", placeholder: "path, answer, reason" });
  let typing = 0;
  search.oninput = () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      wanted.text = search.value.trim();
      refresh();
    }, TYPING_MS);
  };
  controls.append(labelled("search", search, "wide"));
  for (const column of rows.columns.filter((each) => each.kind === "choice" && several(each.name))) {
    const select = make("select", { "data-choice": column.name }, make("option", { value: "", textContent: "any" }));
    column.values.forEach((value, code) => select.append(make("option", { value: String(code), textContent: value })));
    select.onchange = () => choose(column.name, select.value === "" ? null : Number(select.value));
    controls.append(labelled(column.name, select));
  }
  for (const column of rows.columns.filter((each) => each.kind === "number")) {
    const ends = ["from", "to"].map((end) =>
      make("input", { type: "number", step: "any", placeholder: end, "aria-label": `${column.name} ${end}` }),
    );
    for (const end of ends) {
      end.oninput = () => {
        const range = ends.map((each) => each.valueAsNumber);
        if (range.every(Number.isNaN)) delete wanted.ranges[column.name];
        else wanted.ranges[column.name] = range;
        refresh();
      };
    }
    controls.append(labelled(column.name, make("span", { className: "range" }, ...ends)));
  }
  const sort = make("select", { id: "sort" }, make("option", { value: "", textContent: "path" }));
  for (const column of rows.columns.filter((each) => each.name !== "raw_answer")) {
    sort.append(make("option", { value: column.name, textContent: column.name }));
  }
  sort.onchange = () => {
    wanted.sort = sort.value || null;
    refresh();
  };
  const turn = make("button", { type: "button", id: "turn", textContent: "ascending" });
  turn.onclick = () => {
    wanted.descending = !wanted.descending;
    turn.textContent = wanted.descending ? "descending" : "ascending";
    refresh();
  };
  const view = make("select", { id: "view" }, ...["images", "objects"].map((name) => make("option", { textContent: name })));
  view.onchange = () => {
    wanted.view = view.value;
    refresh();
  };
  const all = make("button", { type: "button", id: "all", textContent: "show all" });
  all.onclick = () => {
    controls.reset();
    Object.assign(wanted, { text: "", choices: {}, ranges: {}, reason: null, sort: null, descending: false, view: view.value });
    turn.textContent = "ascending";
    refresh();
  };
  controls.append(labelled("sort by", sort), turn, labelled("show", view), all);
  controls.onsubmit = (event) => event.preventDefault();
  controls.hidden = false;
  for (const bar of document.querySelectorAll("[data-field]")) {
    const code = Number(bar.dataset.code);
    clickable(bar, () => choose(bar.dataset.field, wanted.choices[bar.dataset.field] === code ? null : code));
  }
  for (const reason of document.querySelectorAll("[data-reason]")) {
    clickable(reason, () => {
      wanted.reason = wanted.reason === reason.dataset.reason ? null : reason.dataset.reason;
      refresh();
      at("gallery").scrollIntoView();
    });
  }
}

function clickable(element, act) {
  element.tabIndex = 0;
  element.onclick = act;
  element.onkeydown = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    act();
  };
}

/** Filter by a value of a choice; null: by none. */
function choose(name, code) {
  if (code === null) delete wanted.choices[name];
  else wanted.choices[name] = code;
  const select = [...document.querySelectorAll("[data-choice]")].find((each) => each.dataset.choice === name);
  if (select) select.value = code === null ? "" : String(code);
  refresh();
}

// --- cards ------------------------------------------------------------------------------------------------------------

/** Select, count and show again; keepPage: the rows only became more. */
function refresh(keepPage = false) {
  shown = rows.select(wanted);
  items = wanted.view === "images" ? rows.imagesOf(shown) : shown;
  page = keepPage ? page : 0;
  const images = wanted.view === "images" ? items.length : null;
  const left = rows.about.rows - rows.loaded;
  const text = `${shown.length} of ${rows.loaded} rows${images === null ? "" : ` in ${images} images`}`;
  at("found").textContent = left ? `${text}; ${left} more are loading` : text;
  count();
  showPage();
}

/** The bars, for the rows that fit. */
function count() {
  const counts = {};
  for (const bar of document.querySelectorAll("[data-field]")) {
    const { field, code } = bar.dataset;
    if (rows.loaded === rows.about.rows) {
      counts[field] ??= rows.counts(field, shown);
      const most = Number(bar.closest("section").dataset.most);
      bar.cells[1].textContent = counts[field][code];
      bar.querySelector("rect").setAttribute("width", `${(100 * counts[field][code]) / most}%`);
    }
    bar.classList.toggle("chosen", wanted.choices[field] === Number(code));
    bar.setAttribute("aria-pressed", wanted.choices[field] === Number(code));
  }
}

function showPage() {
  const size = PAGE_SIZE[wanted.view];
  const pages = Math.max(1, Math.ceil(items.length / size));
  page = Math.min(Math.max(page, 0), pages - 1);
  const cards = [];
  const grouped = wanted.sort !== null && rows.named[wanted.sort].kind === "choice" ? rows.named[wanted.sort] : null;
  let heading = null;
  for (const item of items.slice(page * size, (page + 1) * size)) {
    if (grouped && wanted.view === "objects") {
      const value = rows.text(grouped, item) ?? `no ${grouped.name}`;
      if (value !== heading) cards.push(make("h3", { textContent: value }));
      heading = value;
    }
    cards.push(wanted.view === "images" ? imageCard(item) : objectCard(item));
  }
  at("cards").className = wanted.view;
  at("cards").replaceChildren(...cards);
  const step = (text, to, off) => {
    const button = make("button", { type: "button", textContent: text, disabled: off });
    button.onclick = () => turnTo(to);
    return button;
  };
  const number = make("input", { type: "number", min: 1, max: pages, value: page + 1, "aria-label": "page" });
  number.onchange = () => turnTo(number.valueAsNumber - 1 || 0);
  at("pages").replaceChildren(
    step("first", 0, page === 0),
    step("previous", page - 1, page === 0),
    number,
    `of ${pages}`,
    step("next", page + 1, page === pages - 1),
    step("last", pages - 1, page === pages - 1),
  );
  at("pages").hidden = pages === 1;
}

function turnTo(number) {
  page = number;
  showPage();
  at("gallery").scrollIntoView();
}

/** A picture; where it cannot be loaded, nothing. */
function picture(source, text) {
  const image = make("img", { loading: "lazy", alt: text });
  image.onerror = () => image.remove();
  image.src = address(source);
  return image;
}

/** A path within the run's folder as an address. */
const address = (path) => path.split("/").map(encodeURIComponent).join("/");

function cropOf(row) {
  const crop = rows.crop(row);
  const failed = rows.text(rows.named.outcome, row) === "failed";
  return make(
    "div",
    {},
    crop ? picture(crop, caption(row)) : null,
    make("span", { className: failed ? "failed" : "", textContent: said(row) }),
  );
}

function card(item, image, ...children) {
  const button = make("button", { type: "button", "aria-label": `open ${rows.paths[image]}` }, ...children);
  button.onclick = () => open(item);
  return button;
}

function imageCard(image) {
  const path = rows.paths[image];
  const own = rows.rowsOf(image);
  const copy = rows.copies[image];
  const found = own.filter((row) => rows.index[row] !== NONE);
  const without = found.length ? null : own[0];
  const note = without === null ? null : make("div", { textContent: said(without) });
  if (note && rows.text(rows.named.outcome, without) === "failed") note.className = "failed";
  return make(
    "figure",
    {},
    card(
      image,
      image,
      copy ? picture(copy, `${path} with its detections`) : null,
      make("figcaption", {}, make("span", { className: "path", textContent: path }), note, ...timeOf(image), ...inputsOf(image)),
    ),
    found.length ? make("div", { className: "crops" }, ...found.map(cropOf)) : null,
  );
}

function objectCard(row) {
  const image = rows.image[row];
  const crop = rows.crop(row);
  const failed = rows.text(rows.named.outcome, row) === "failed";
  return make(
    "figure",
    {},
    card(
      row,
      image,
      crop ? picture(crop, caption(row)) : null,
      make(
        "figcaption",
        {},
        make("span", { className: failed ? "failed" : "", textContent: said(row) }),
        make("div", { className: "path", textContent: `${rows.paths[image].split("/").pop()} ${percent(rows.named.score.rows[row])}` }),
      ),
    ),
  );
}

/** When a video shows a frame: hours, minutes, seconds and thousandths after its first one. */
function timeOf(image) {
  const seconds = rows.ofImages.time_s?.[image] ?? null;
  if (seconds === null) return [];
  const clock = new Date(Math.round(seconds * 1000)).toISOString().slice(11, -1);
  return [make("div", { className: "time" }, make("b", {}, "time"), `: ${clock}`)];
}

/** The inputs of an image's row, which are JSON text. */
function inputsOf(image) {
  const text = rows.ofImages.inputs?.[image];
  if (!text) return [];
  const shownValue = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return Object.entries(JSON.parse(text)).map(([name, value]) => make("div", {}, make("b", {}, name), `: ${shownValue(value)}`));
}

// --- the large view ---------------------------------------------------------------------------------------------------

function open(item) {
  opened = item;
  const image = wanted.view === "images" ? item : rows.image[item];
  const place = items.indexOf(item);
  const own = rows.rowsOf(image).filter((row) => rows.index[row] !== NONE);
  const stage = make("div", { className: "stage" });
  const side = make("div", { className: "side" }, make("p", { id: "note" }), ...timeOf(image), ...inputsOf(image));
  const boxes = make("button", { type: "button", id: "boxes", textContent: "boxes", "aria-pressed": boxesOn });
  const redraw = () => {
    boxes.setAttribute("aria-pressed", boxesOn);
    for (const box of stage.querySelectorAll("[data-row]")) {
      const row = Number(box.dataset.row);
      box.style.display = boxesOn && !hiddenBoxes.has(row) ? "" : "none";
    }
  };
  boxes.onclick = () => {
    boxesOn = !boxesOn;
    redraw();
  };
  const step = (text, by) => {
    const button = make("button", { type: "button", textContent: text, disabled: items[place + by] === undefined });
    button.onclick = () => open(items[place + by]);
    return button;
  };
  const close = make("button", { type: "button", textContent: "close" });
  close.onclick = () => at("large").close();
  for (const row of own) side.append(about(row, row === item && wanted.view === "objects", redraw));
  if (!own.length) side.append(make("p", { textContent: rows.rowsOf(image).map(said).join("; ") }));
  at("large").replaceChildren(
    make("header", {}, make("strong", { textContent: rows.paths[image] }), boxes, step("←", -1), step("→", 1), close),
    make("div", { className: "inside" }, stage, side),
  );
  showLarge(stage, image, own, redraw);
  if (!at("large").open) at("large").showModal();
}

/** One detection beside the picture, with the switch of its box. */
function about(row, chosen, redraw) {
  const box = make("input", { type: "checkbox", checked: !hiddenBoxes.has(row) });
  box.onchange = () => {
    if (box.checked) hiddenBoxes.delete(row);
    else hiddenBoxes.add(row);
    redraw();
  };
  const swatch = drawn("svg", { class: "swatch" });
  swatch.append(drawn("rect", { width: "100%", height: "100%", fill: colour(kind(row)) }));
  const list = make("dl");
  for (const column of rows.columns) {
    const value = isConfidence(column.name) ? null : fields().includes(column.name) ? answer(row, column.name) : rows.text(column, row);
    const wordy = column.name === "raw_answer" && rows.text(rows.named.outcome, row) !== "failed";
    if (value !== null && !wordy) list.append(make("dt", { textContent: column.name }), make("dd", { textContent: value }));
  }
  const crop = rows.crop(row);
  return make(
    "article",
    { className: chosen ? "this" : "" },
    make("label", {}, box, " ", swatch, ` ${caption(row)}`),
    crop ? picture(crop, caption(row)) : null,
    list,
  );
}

/** Show an image's picture: the file itself with the boxes over it, else its annotated copy, else nothing. */
function showLarge(stage, image, own, redraw) {
  const width = rows.ofImages.width?.[image];
  const height = rows.ofImages.height?.[image];
  const path = rows.paths[image];
  const note = (text) => {
    if (stage.isConnected) at("note").textContent = text;
  };
  const useCopy = () => {
    stage.replaceChildren();
    if (stage.isConnected) at("boxes").disabled = true;
    if (!rows.copies[image]) return note("The image cannot be shown from here, and there is no annotated copy.");
    note("The annotated copy: its boxes cannot be switched.");
    const copy = picture(rows.copies[image], path);
    copy.loading = "eager";
    return stage.append(copy);
  };
  // Only a page from the disk reaches the image itself; an address elsewhere is not asked for.
  if (location.protocol !== "file:" || path.includes("://") || rows.ofImages.time_s?.[image] != null || !width || !height) return useCopy();
  const place = path.startsWith("/") ? path : `${rows.about.place}/${path}`;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": path });
  const whole = drawn("image", { width, height, preserveAspectRatio: "none" });
  whole.onerror = useCopy;
  whole.setAttribute("href", `file://${address(place)}`);
  svg.append(whole);
  for (const row of own.filter((each) => rows.box(each))) {
    const [x1, y1, x2, y2] = rows.box(row);
    const ink = colour(kind(row));
    const group = drawn("g", { "data-row": row });
    group.append(drawn("rect", { x: x1, y: y1, width: Math.max(x2 - x1, 1), height: Math.max(y2 - y1, 1), stroke: ink }));
    if (row === opened && wanted.view === "objects") group.firstChild.classList.add("this");
    const size = Math.max(width, height) / 45;
    const text = drawn("text", { x: x1 + size / 4, y: Math.max(y1 - size / 4, size), fill: ink, "font-size": size });
    text.setAttribute("paint-order", "stroke");
    text.setAttribute("stroke", "white");
    text.setAttribute("stroke-width", size / 5);
    text.textContent = caption(row);
    group.append(text);
    svg.append(group);
  }
  stage.append(svg);
  return redraw();
}

document.addEventListener("keydown", (event) => {
  if (rows === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox";
  const large = at("large").open;
  if (typing) return;
  const place = large ? items.indexOf(opened) : 0;
  const next = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (large && next && items[place + next] !== undefined) open(items[place + next]);
  else if (large && event.key === "b") at("boxes").click();
  else if (!large && event.key === "n") turnTo(page + 1);
  else if (!large && event.key === "p") turnTo(page - 1);
  else if (!large && event.key === "/") at("search").focus();
  else return;
  event.preventDefault();
});
