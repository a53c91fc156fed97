// The pointer, or an arrow key, picks a moment: a line through all panels, and each curve's value there.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const box = document.querySelector(".timeline");
  const plot = document.querySelector(".phases");
  const cursor = document.getElementById("cursor");
  const tip = document.getElementById("tip");
  const places = [...document.querySelectorAll("[data-curve]")];
  const means = places.map((place) => place.textContent);
  const when = document.getElementById("when");
  const whole = when.textContent;
  let chosen = null;

  const size = (bytes) => {
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (bytes < 999.5) return bytes.toFixed(unit === "B" || bytes >= 99.5 ? 0 : 1) + " " + unit;
      bytes /= 1000;
    }
    return bytes.toFixed(1) + " TB";
  };
  const shown = (value, unit) => {
    if (value === null) return "–";
    if (unit === "cores") return value.toFixed(1);
    if (unit === "share") return Math.round(100 * value) + "%";
    if (unit === "rows") return String(Math.round(10 * value) / 10);
    if (unit === "bytes") return size(value);
    return String(Number(value.toPrecision(3)));
  };

  const choose = (index) => {
    chosen = Math.min(Math.max(index, 0), data.t.length - 1);
    const moment = data.t[chosen];
    const frame = box.getBoundingClientRect(), area = plot.getBoundingClientRect();
    const left = area.left - frame.left + (area.width * moment) / data.span;
    cursor.style.left = tip.style.left = left + "px";
    cursor.hidden = tip.hidden = false;
    const phase = data.phases.find(([, start, end]) => start <= moment && moment < end);
    when.textContent = "at " + moment.toFixed(2) + " s";
    tip.textContent = moment.toFixed(2) + " s" + (phase ? ", " + phase[0] : "");
    places.forEach((place, number) => {
      const curve = data.curves[number];
      place.textContent = shown(curve.values[chosen], curve.unit);
    });
  };
  const leave = () => {
    chosen = null;
    cursor.hidden = tip.hidden = true;
    when.textContent = whole;
    places.forEach((place, number) => { place.textContent = means[number]; });
  };

  box.addEventListener("pointermove", (event) => {
    const area = plot.getBoundingClientRect();
    const moment = ((event.clientX - area.left) / area.width) * data.span;
    if (moment < 0 || moment > data.span || !data.t.length) return leave();
    let low = 0, high = data.t.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (data.t[middle] < moment) low = middle + 1; else high = middle;
    }
    choose(low > 0 && moment - data.t[low - 1] < data.t[low] - moment ? low - 1 : low);
  });
  box.addEventListener("pointerleave", leave);
  box.addEventListener("blur", leave);
  box.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !data.t.length) return;
    event.preventDefault();
    choose(chosen === null ? 0 : chosen + step);
  });
})();
