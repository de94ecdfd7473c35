// Draws every figure.plot of a page with uPlot, in the colours of page.css, anew when light turns to dark.
"use strict";
(() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shown = (value) => (value == null ? "" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(5))));
  const short = (value) => (value == null ? "" : Math.abs(value) >= 1e9 ? value / 1e9 + "G"
    : Math.abs(value) >= 1e6 ? value / 1e6 + "M" : Math.abs(value) >= 1e4 ? value / 1e3 + "k"
    : String(Number(value.toPrecision(6))));

  const curve = (one, position) => {
    const stroke = one.style === "faint" ? colour("--faint") : colour("--c" + (1 + (position % 6)));
    return {
      label: one.name, stroke, width: one.style === "faint" ? 1 : 2, spanGaps: true,
      dash: one.style === "level" ? [6, 5] : undefined,
      points: { show: one.style === "points" || one.x.length === 1, size: 7, fill: stroke },
      value: (plot, value) => shown(value),
    };
  };

  const axis = (label, more) => ({
    label, stroke: colour("--muted"), labelFont: "12px system-ui, sans-serif", font: "12px system-ui, sans-serif",
    labelSize: 20, grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, ...more,
  });

  const draw = (figure) => {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const place = figure.querySelector(".canvas");
    const positive = spec.series.every((one) => one.y.every((value) => value > 0));
    let log = spec.log && positive, plot = null;
    const make = () => {
      if (plot) plot.destroy();
      let position = 0;
      const series = spec.series.map((one) => curve(one, one.style === "faint" ? 0 : position++));
      plot = new uPlot({
        width: place.clientWidth, height: 270, series: [{ label: spec.x }, ...series],
        scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
        axes: [axis(spec.x, { size: 34 }), axis("", { size: 62, labelSize: 0,
          values: (self, splits) => splits.map(short) })],
        cursor: { sync: { key: spec.x } },
      }, uPlot.join(spec.series.map((one) => [one.x, one.y])), place);
    };
    if (positive) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = log ? "linear" : "log";
      button.title = "scale of the y axis";
      button.addEventListener("click", () => { log = !log; button.textContent = log ? "linear" : "log"; make(); });
      figure.querySelector("figcaption").append(button);
    }
    make();
    new ResizeObserver(() => {
      if (place.clientWidth && place.clientWidth !== plot.width) plot.setSize({ width: place.clientWidth, height: 270 });
    }).observe(place);
    return make;
  };

  const again = [...document.querySelectorAll("figure.plot")].map(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => again.forEach((make) => make()));
})();
