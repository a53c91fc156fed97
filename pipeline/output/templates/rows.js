"use strict";
// The rows of a run by column: takes the chunks beside the page, filters, sorts and counts.
// Nothing in here touches the document.

const NONE = -1;

class Rows {
  /** about: what about.js says of the run: its images, rows and columns. */
  constructor(about) {
    this.about = about;
    this.loaded = 0; // rows
    this.image = new Uint32Array(about.rows); // each row's image
    this.first = new Uint32Array(about.images + 1); // each image's first row
    this.paths = new Array(about.images).fill("");
    this.copies = new Array(about.images).fill(null);
    this.ofImages = {};
    this.index = new Int32Array(about.rows).fill(NONE);
    this.boxes = new Int32Array(4 * about.rows);
    this.crops = new Array(about.rows).fill(0);
    this.columns = about.columns.map((column) => ({
      ...column,
      rows:
        column.kind === "choice" ? new Int16Array(about.rows).fill(NONE)
        : column.kind === "number" ? new Float64Array(about.rows).fill(NaN)
        : new Array(about.rows).fill(null),
      ranks: column.kind === "text" ? new Int32Array(about.rows).fill(NONE) : null,
    }));
    this.named = Object.fromEntries(this.columns.map((column) => [column.name, column]));
    this.ranked = new Map();
    this.orders = new Map();
  }

  /** Take one chunk: some images with their rows. */
  take(chunk) {
    const count = chunk.paths.length;
    let row = chunk.first_row;
    for (let place = 0; place < count; place++) {
      const image = chunk.first_image + place;
      this.first[image] = row;
      this.paths[image] = chunk.paths[place];
      this.copies[image] = chunk.copies[place] ?? null;
      for (let end = row + chunk.counts[place]; row < end; row++) this.image[row] = image;
    }
    this.first[chunk.first_image + count] = row;
    for (const [name, values] of Object.entries(chunk.images)) {
      const column = (this.ofImages[name] ??= new Array(this.about.images).fill(null));
      for (let place = 0; place < count; place++) column[chunk.first_image + place] = values[place] ?? null;
    }
    const begin = chunk.first_row;
    const fill = (target, values) => {
      for (let place = 0; place < row - begin; place++) {
        const value = values[place];
        if (value !== null && value !== undefined) target[begin + place] = value;
      }
    };
    fill(this.index, chunk.index);
    this.boxes.set(chunk.boxes, 4 * begin);
    fill(this.crops, chunk.crops);
    this.columns.forEach((column, number) => fill(column.rows, chunk.columns[number]));
    for (const [name, ranks] of Object.entries(chunk.ranks)) fill(this.named[name].ranks, ranks);
    this.loaded += row - begin;
    this.ranked.clear();
    this.orders.clear();
  }

  /** The value of a column as text; null for none. */
  text(column, row) {
    const value = column.rows[row];
    if (column.kind === "choice") return value === NONE ? null : column.values[value];
    if (column.kind === "number") return Number.isNaN(value) ? null : String(value);
    return value;
  }

  /** Where a row's crop is; null for none. */
  crop(row) {
    const crop = this.crops[row];
    return crop === 1 ? `crops/${this.ofImages.key[this.image[row]]}-${this.index[row]}.jpg` : crop || null;
  }

  /** A row's box: x1, y1, x2, y2 in pixels; null for none. */
  box(row) {
    const box = this.boxes.subarray(4 * row, 4 * row + 4);
    return box.some((side) => side !== 0) ? box : null;
  }

  /** The rows of an image. */
  rowsOf(image) {
    return Array.from({ length: this.first[image + 1] - this.first[image] }, (_, place) => this.first[image] + place);
  }

  /** As `rank`, kept until more rows come. */
  ranks(name) {
    if (!this.ranked.has(name)) this.ranked.set(name, this.rank(name));
    return this.ranked.get(name);
  }

  /** Each row's place among the values of a column, and how many places there are. */
  rank(name) {
    const column = this.named[name];
    if (column.kind === "choice") return [column.rows, column.values.length];
    if (column.kind === "text") return [column.ranks, column.ranks.reduce((most, rank) => Math.max(most, rank), NONE) + 1];
    const sorted = column.rows.filter((value) => !Number.isNaN(value)).sort();
    let distinct = 0;
    for (let place = 0; place < sorted.length; place++) {
      if (place === 0 || sorted[place] !== sorted[place - 1]) sorted[distinct++] = sorted[place];
    }
    const ranks = new Int32Array(this.about.rows);
    for (let row = 0; row < ranks.length; row++) {
      const value = column.rows[row];
      let low = 0;
      for (let high = distinct; low < high; ) {
        const middle = (low + high) >> 1;
        if (sorted[middle] < value) low = middle + 1;
        else high = middle;
      }
      ranks[row] = Number.isNaN(value) ? NONE : low;
    }
    return [ranks, distinct];
  }

  /** All rows in the order of a column, or of the paths (name null); rows without a value come last either way. */
  order(name, descending) {
    const key = JSON.stringify([name, descending]);
    if (this.orders.has(key)) return this.orders.get(key);
    const [ranks, places] = name === null ? [this.image, this.about.images] : this.ranks(name);
    const place = (rank) => (rank === NONE ? places : descending ? places - 1 - rank : rank);
    const starts = new Uint32Array(places + 2);
    for (let row = 0; row < this.loaded; row++) starts[place(ranks[row]) + 1]++;
    for (let at = 1; at < starts.length; at++) starts[at] += starts[at - 1];
    const order = new Uint32Array(this.loaded);
    for (let row = 0; row < this.loaded; row++) order[starts[place(ranks[row])]++] = row;
    this.orders.set(key, order);
    return order;
  }

  /** Whether each row has the text: in the path, the inputs, or any column; upper and lower case are the same. */
  matches(text) {
    const wanted = text.toLowerCase();
    const has = (value) => value !== null && value.toLowerCase().includes(wanted);
    const images = Uint8Array.from(this.paths, (path, image) => has(path) || has(this.ofImages.inputs?.[image] ?? null));
    const found = new Uint8Array(this.loaded);
    for (let row = 0; row < this.loaded; row++) found[row] = images[this.image[row]];
    for (const column of this.columns) {
      if (column.kind === "choice") {
        const values = column.values.map(has);
        if (values.includes(true)) for (let row = 0; row < this.loaded; row++) if (values[column.rows[row]]) found[row] = 1;
      } else if (column.kind === "text") {
        for (let row = 0; row < this.loaded; row++) if (!found[row] && has(column.rows[row])) found[row] = 1;
      }
    }
    return found;
  }

  /**
   * The rows that fit, in order. wanted: text; choices: {column: code}; ranges: {column: [low, high]}, either NaN for
   * none; reason: the whole reason of a failure or null; sort: a column or null; descending.
   */
  select(wanted) {
    const fits = wanted.text ? this.matches(wanted.text) : new Uint8Array(this.loaded).fill(1);
    for (const [name, code] of Object.entries(wanted.choices)) {
      const values = this.named[name].rows;
      for (let row = 0; row < this.loaded; row++) if (values[row] !== code) fits[row] = 0;
    }
    for (const [name, [low, high]] of Object.entries(wanted.ranges)) {
      const values = this.named[name].rows;
      // A row without a value is in no range.
      for (let row = 0; row < this.loaded; row++) {
        if (Number.isNaN(values[row]) || values[row] < low || values[row] > high) fits[row] = 0;
      }
    }
    if (wanted.reason !== null) {
      const values = this.named.reason.rows;
      for (let row = 0; row < this.loaded; row++) if (values[row] !== wanted.reason) fits[row] = 0;
    }
    return this.order(wanted.sort, wanted.descending).filter((row) => fits[row]);
  }

  /** How many of the rows have each value of a choice. */
  counts(name, rows) {
    const column = this.named[name];
    const counts = new Uint32Array(column.values.length);
    for (let place = 0; place < rows.length; place++) {
      const code = column.rows[rows[place]];
      if (code !== NONE) counts[code]++;
    }
    return counts;
  }

  /** The images of these rows, each once, in the order of its first row. */
  imagesOf(rows) {
    const seen = new Uint8Array(this.about.images);
    const images = [];
    for (let place = 0; place < rows.length; place++) {
      const image = this.image[rows[place]];
      if (!seen[image]) images.push(image);
      seen[image] = 1;
    }
    return images;
  }
}
