"use strict";
// How each kind of chart is drawn: kind -> its Vega-Lite specification. page.js puts in the numbers: every data set has a name.
// Colours are variables of the page's style, so that charts follow light, dark and print.
const specifications = (() => {
// of a linear axis: numbers that would be all zeros are written with their power of ten
const SHORT = "abs(datum.value) >= 1e6 || (datum.value != 0 && abs(datum.value) < 1e-5) ? format(datum.value, '.2~e') : datum.label";
// of a logarithmic axis only the powers of ten have lines
const POWER = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 1e-6";

const quantity = (field, more) => ({ field, type: "quantitative", ...more });
const category = (field, more) => ({ field, type: "nominal", ...more });
const figure = (field, title) => quantity(field, { title, format: ".4~g" });
const text = (field, title) => category(field, { title });
const INK = category("ink", { scale: null });
const DASH = category("dash", { scale: null });
const WIDE = quantity("wide", { scale: null });
const LABEL = { type: "text", align: "left", dx: 5, color: "var(--ink)", fontSize: 11 };
const SIZE = { height: 190, width: 300 };

function curves(data, height, { log = false, hideX = false, title = null } = {}) {
  const axis = { title, minExtent: 48, tickCount: title ? 3 : 5, labelExpr: SHORT };
  if (log) {
    axis.format = "~g";
    axis.labelExpr = "datum.label === '' ? '' : " + SHORT;
    axis.gridOpacity = { condition: { test: POWER, value: 1 }, value: 0 };
  }
  const y = quantity("drawn", { axis, scale: log ? { type: "log", nice: true } : { zero: false, nice: true } });
  const x = quantity("x", {
    axis: { title: hideX ? null : "step", labels: !hideX, tickMinStep: 1, grid: false }, scale: { nice: false, zero: false },
  });
  const color = INK, detail = category("series");
  const tooltip = [text("series", "curve"), figure("x", "step"), text("text", "value")];
  return {
    data: { name: data }, height, width: 300,
    layer: [
      { mark: { type: "line", clip: false, interpolate: "linear" }, encoding: { x, y, color, detail, strokeDash: DASH, strokeWidth: WIDE } },
      {
        mark: { type: "point", filled: true, size: 28, opacity: 1 },
        encoding: { x, y, color, detail },
        transform: [{ filter: "datum.dots" }],
      },
      {
        mark: { type: "point", shape: "cross", angle: 45, size: 60, filled: true, opacity: 1 },
        encoding: { x, y: { value: 0 }, color: { value: "var(--fail)" }, tooltip },
        transform: [{ filter: "datum.bad" }],
      },
      // the pointer's target: larger than the visible point
      { mark: { type: "point", filled: true, size: 160, opacity: 0 }, encoding: { x, y, color, detail, tooltip } },
    ],
  };
}

// the end of an axis of bars, unless page.js sets another: the whole budget, and the best accuracy
const REACH = { name: "reach", value: 1 };
const REACHING = { domainMin: 0, domainMax: { expr: "reach" }, clamp: true, nice: false };
const bar = (field, more) => category(field, { sort: null, axis: { title: null, ...more } });
const rules = (scale) => ({
  data: { name: "rules" }, mark: { type: "rule", strokeWidth: 2 },
  encoding: { x: quantity("at", { scale }), color: INK, strokeDash: DASH, tooltip: [text("what", "line"), figure("at", "value")] },
});

function motion() {
  const data = { name: "bars" }, scale = REACHING, y = bar("layer", { labelLimit: 400 });
  const tooltip = [text("full-layer", "layer"), text("text", "share of the LR budget"), text("range", "its tensors"), text("state", "remarks")];
  const used = quantity("used", { axis: { title: "share of the LR budget", format: "~%", tickCount: 5 }, scale });
  return {
    params: [REACH], height: { step: 21 }, width: 300,
    layer: [
      {
        data: { name: "band" }, mark: { type: "rect", color: "var(--band)", opacity: 1 },
        encoding: { x: quantity("from", { scale }), x2: { field: "to" } },
      },
      { data, mark: { type: "bar", height: { band: 0.62 } }, encoding: { x: used, y, color: INK, tooltip } },
      {
        data, mark: { type: "rule", strokeWidth: 1.4, color: "var(--ink)" },
        encoding: { x: quantity("low", { scale }), x2: { field: "high" }, y, tooltip },
      },
      { data, mark: LABEL, encoding: { x: quantity("end", { scale }), y, text: category("label"), tooltip } },
    ],
  };
}

function rewound() {
  const data = { name: "bars" }, y = bar("part", { labelLimit: 400 }), yOffset = category("how", { sort: null });
  const x = quantity("loss", { scale: REACHING, axis: { title: "loss", labelExpr: SHORT, tickCount: 5 } });
  const tooltip = [text("full-part", "part"), text("how", "reset to"), figure("loss", "loss"), figure("accuracy", "accuracy")];
  return {
    params: [REACH], height: { step: 17 }, width: 300,
    layer: [
      { data, mark: { type: "bar" }, encoding: { x, y, yOffset, color: INK, tooltip } },
      rules(REACHING),
      { data, mark: LABEL, encoding: { x, y, yOffset, text: category("label"), tooltip } },
    ],
  };
}

function metric() {
  const scale = { domainMin: { expr: "low" }, domainMax: { expr: "high" }, nice: false };
  const x = quantity("value", { scale, axis: { title: null, labelExpr: SHORT, tickCount: 5 } });
  const tooltip = [text("when", "when"), figure("value", "value")];
  return {
    params: [{ name: "low", value: 0 }, { name: "high", value: 1 }], height: { step: 26 }, width: 300,
    layer: [
      {
        data: { name: "bars" }, mark: { type: "bar", height: { band: 0.62 } },
        encoding: { x, y: bar("when"), color: INK, tooltip },
      },
      rules(scale),
    ],
  };
}

const BINS = [figure("from", "from"), figure("to", "to"), figure("count", "weights")];
const weight = quantity("from", { axis: { title: "weight", labelExpr: SHORT, tickCount: 5 }, scale: { nice: false, zero: false } });

function histogram() {
  const axis = { title: "density", labelExpr: SHORT, minExtent: 48, tickCount: 4 };
  const x = weight, y = quantity("density", { axis, scale: { domainMin: 0, nice: true } }), detail = category("series");
  return {
    data: { name: "bins" }, ...SIZE,
    layer: [
      { mark: { type: "line", interpolate: "step-after" }, encoding: { x, y, color: INK, detail, strokeDash: DASH, strokeWidth: WIDE } },
      { mark: { type: "bar", opacity: 0 }, encoding: { x, x2: { field: "to" }, y, detail, tooltip: [text("series", "when"), ...BINS] } },
    ],
  };
}

function time() {
  const y = { field: "step", type: "ordinal", sort: null, axis: { title: "step", minExtent: 48 } };
  const fillOpacity = quantity("density", { scale: { range: [0.03, 1] }, legend: null });
  const tooltip = [figure("step", "step"), ...BINS];
  return {
    data: { name: "bins" }, ...SIZE,
    mark: { type: "rect", color: "var(--head)", strokeWidth: 0 },
    encoding: { x: weight, x2: { field: "to" }, y, fillOpacity, tooltip },
  };
}

return {
  lines: curves("lines", 190),
  log: curves("lines", 210, { log: true }),
  loss: {
    vconcat: [curves("lines", 190, { hideX: true }), curves("below", 70, { title: "lr" })], spacing: 8,
    resolve: { scale: { x: "shared", color: "independent" } },
  },
  motion: motion(),
  rewound: rewound(),
  metric: metric(),
  histogram: histogram(),
  time: time(),
};
})();
