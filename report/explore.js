// Draws what the page lets its reader explore, from the values in it: every run of a setting, one run round by round.
(() => {
  "use strict";
  const found = document.getElementById("explored");
  if (!found) return;
  const explored = JSON.parse(found.textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = []; // what is drawn again where the colours change
  const percent = (value) => `${Number((100 * value).toPrecision(value < 0.1 ? 2 : 3))}\u00a0%`;
  const count = (value) => value.toLocaleString("en");
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // Colours chosen for white paper come halfway to white on a dark page.
  const shade = (color) => (dark.matches ? Chart.helpers.color(color).mix(Chart.helpers.color("#fff"), 0.5).hexString() : color);
  const element = (tag, text = "", attributes = {}) => {
    const made = document.createElement(tag);
    made.textContent = text;
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    return made;
  };
  const row = (cells, tag) => {
    const made = element("tr");
    cells.forEach((text, at) => {
      const scope = tag === "th" ? "col" : at === 0 ? "row" : null;
      made.append(element(scope ? "th" : "td", text, { ...(scope && { scope }), ...(at === 0 && { class: "first", "data-column": 0 }) }));
    });
    return made;
  };
  const chart = (canvas, config) => {
    const made = new Chart(canvas, config);
    const color = () => {
      for (const scale of Object.values(made.options.scales)) {
        scale.ticks.color = scale.title.color = ink("ink");
        // A line only where there is a number: logarithmic axes have many more ticks.
        const line = ink("line");
        scale.grid.color = ({ tick }) => (tick?.label ? line : "transparent");
      }
      made.update();
    };
    drawn.push(color);
    color();
    return made;
  };
  const axis = (text, more = {}) => ({ title: { display: true, text }, ticks: {}, grid: {}, ...more });
  const options = { animation: false, maintainAspectRatio: false, plugins: { legend: { display: false } } };
  // On a logarithmic axis 1, 2 and 5 are enough.
  const few = (write) => (value) => ([1, 2, 5].includes(Number(value.toExponential()[0])) && value.toExponential()[1] !== "." ? write(value) : "");

  const front = (box, { measures, methods, settings }) => {
    const [setting, measure] = ["setting", "measure"].map((name) => box.querySelector(`select[name=${name}]`));
    settings.forEach(({ title }, at) => setting.add(new Option(title, at)));
    Object.entries(measures).forEach(([name, text], at) => measure.add(new Option(text, at)));
    measure.parentElement.hidden = measure.options.length < 2;
    const switches = Object.entries(methods).map(([name, { label, color }]) => {
      const line = element("label"), input = element("input", "", { type: "checkbox", value: name, checked: "" });
      const spot = element("span", "", { class: "spot" });
      drawn.push(() => { spot.style.background = shade(color); });
      line.append(input, spot, label);
      box.querySelector(".switches").append(line);
      return input;
    });
    drawn.forEach((color) => color());
    const told = box.querySelector(".told");

    const points = (name) => {
      const { runs, means, synapses } = settings[setting.value], which = Number(measure.value);
      const mean = means[name];
      const list = mean && mean[1 + which] !== null ? [{ x: mean[0], y: mean[1 + which], mean }] : [];
      for (const [seed, left, accuracy, ...values] of runs[name] ?? []) {
        list.push({ x: left / synapses, y: values[which], seed, left, accuracy });
      }
      return list.filter(({ y }) => y !== null);
    };
    const describe = (name, { x, y, mean, seed, left, accuracy }) => {
      const unit = `${Object.keys(measures)[measure.value]} ${y.toFixed(2)}×`;
      if (!mean) return [`${name}, seed ${seed}`, `${percent(x)} of the synapses left (${count(left)})`, unit, `test accuracy ${percent(accuracy)}`];
      const [met, runs] = mean.slice(-3);
      return [`${name}, mean`, `${percent(x)} of the synapses left`, unit, `${met} of ${runs} runs met the requirement`];
    };
    const best = (shown) => {
      const means = settings[setting.value].means, at = 1 + Number(measure.value);
      const able = shown.filter((name) => means[name]?.at(-1)).map((name) => ({ name, x: means[name][0], y: means[name][at] }));
      able.sort((one, other) => one.x - other.x || one.y - other.y);
      let least = Infinity;
      return able.filter(({ y }) => y !== null && y < least && ((least = y), true));
    };

    const names = { // of the methods on the front, on the side of it where nothing is
      id: "names",
      afterDatasetsDraw: ({ ctx, data, scales: { x, y }, chartArea, width }) => {
        if (width < 500) return; // there they would cover each other
        ctx.font = "bold 12px system-ui, sans-serif";
        ctx.textAlign = "right";
        ctx.textBaseline = "top";
        for (const point of data.datasets.at(-1)?.data ?? []) {
          const right = Math.max(chartArea.left + 4 + ctx.measureText(point.name).width, x.getPixelForValue(point.x) - 6);
          ctx.fillStyle = shade(methods[point.name].color);
          ctx.fillText(point.name, right, y.getPixelForValue(point.y) + 8);
        }
      },
    };
    const plot = chart(box.querySelector("canvas"), {
      type: "scatter",
      plugins: [names],
      data: { datasets: [] },
      options: {
        ...options,
        plugins: {
          legend: { display: false },
          tooltip: { displayColors: false, callbacks: {
            title: ([item]) => describe(item.dataset.name, item.raw)[0],
            label: (item) => describe(item.dataset.name, item.raw).slice(1),
          } },
        },
        interaction: { mode: "nearest", intersect: true },
        scales: {
          x: axis("significant synapses (of all, log scale)", { type: "logarithmic", ticks: { callback: few(percent), maxRotation: 0 } }),
          y: axis("", { type: "logarithmic", ticks: { callback: few((value) => `${value}×`) } }),
        },
      },
    });
    const draw = () => {
      const shown = switches.filter((input) => input.checked).map((input) => input.value);
      const { means, title } = settings[setting.value];
      plot.data.datasets = shown.map((name) => {
        const { color, shape, turned, label } = methods[name], list = points(name);
        const full = ({ mean }) => !mean || mean.at(-3) === mean.at(-2);
        return {
          name, label, data: list, pointStyle: shape, rotation: turned, borderColor: shade(color), borderWidth: /cross|star/.test(shape) ? list.map(({ mean }) => (mean ? 3 : 1.5)) : 1.5,
          backgroundColor: list.map((point) => (point.mean ? (full(point) ? shade(color) : "transparent") : `${shade(color)}80`)),
          radius: list.map(({ mean }) => (mean ? 8 : 4)), hoverRadius: list.map(({ mean }) => (mean ? 11 : 7)), hitRadius: 4,
        };
      });
      plot.data.datasets.push({
        type: "line", label: "front", data: best(shown), stepped: "after", borderColor: ink("ink"), borderDash: [5, 3], borderWidth: 1.2,
        pointRadius: 0, pointHitRadius: 0, order: 1,
      });
      const { x, y } = plot.options.scales, all = plot.data.datasets.flatMap(({ data }) => data);
      const ends = (values, below) => [below * Math.min(...values), 1.2 * Math.max(...values)];
      [[x.min, x.max], [y.min, y.max]] = all.length ? [ends(all.map((point) => point.x), 0.6), ends(all.map((point) => point.y), 0.85)] : [[0.01, 1], [1, 10]];
      y.title.text = measure.selectedOptions[0].text.replace(" (", "\n(").split("\n");
      plot.update();
      const missed = Object.entries(means).filter(([, mean]) => mean.at(-3) < mean.at(-2));
      box.querySelector(".missed").textContent = missed.length
        ? `Runs that did not reach the requirement are not drawn: ${missed.map(([name, mean]) => `${name} (${mean.at(-2) - mean.at(-3)} of ${mean.at(-2)})`).join(", ")}.` : "";
      box.querySelector("caption").textContent = `Means: ${title}`;
      box.querySelector("thead").replaceChildren(row(["method", "significant synapses", ...Object.keys(measures), "met the requirement"], "th"));
      box.querySelector("tbody").replaceChildren(...shown.filter((name) => means[name]).sort((one, other) => means[one][0] - means[other][0]).map((name) => {
        const [density, ...rest] = means[name];
        return row([name, percent(density), ...rest.slice(0, -3).map((value) => (value === null ? "–" : `${value.toFixed(2)}×`)), `${rest.at(-3)} of ${rest.at(-2)}`], "td");
      }));
    };
    drawn.push(draw);
    [setting, measure, ...switches].forEach((input) => input.addEventListener("change", draw));
    for (const [name, on] of [["all", true], ["none", false]]) {
      box.querySelector(`button[name=${name}]`).addEventListener("click", () => {
        switches.forEach((input) => { input.checked = on; });
        draw();
      });
    }

    // By keyboard: from point to point, the sparsest first.
    let at = -1;
    plot.canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      const order = plot.data.datasets.flatMap((set, datasetIndex) => (set.name ? set.data.map((point, index) => ({ datasetIndex, index, point, name: set.name })) : []));
      if (!step || !order.length) return;
      event.preventDefault();
      order.sort((one, other) => one.point.x - other.point.x);
      at = Math.max(0, Math.min(order.length - 1, at + step));
      const { datasetIndex, index, point, name } = order[at];
      plot.setActiveElements([{ datasetIndex, index }]);
      plot.tooltip.setActiveElements([{ datasetIndex, index }], { x: 0, y: 0 });
      plot.update();
      told.textContent = `${describe(name, point).join(", ")}.`;
    });
    draw();
  };

  const rounds = (box, runs) => {
    const select = box.querySelector("select"), slider = box.querySelector("input");
    runs.forEach(({ title }, at) => select.add(new Option(title, at)));
    const now = () => runs[select.value].rounds[slider.value];
    const next = () => runs[select.value].rounds[Number(slider.value) + 1]?.[0] ?? runs[select.value].trajectory[0].at(-1);
    const band = {
      id: "band",
      beforeDatasetsDraw: ({ ctx, chartArea: { top, bottom }, scales: { x } }) => {
        const from = x.getPixelForValue(now()[0]);
        ctx.fillStyle = ink("band");
        ctx.fillRect(from - 1, top, Math.max(2, x.getPixelForValue(next()) - from), bottom - top);
      },
    };
    const line = (label, yAxisID, more = {}) => ({ label, yAxisID, data: [], pointRadius: 0, borderWidth: 1.6, ...more });
    const plot = chart(box.querySelector("canvas"), {
      type: "line",
      data: { datasets: [
        line("validation accuracy", "accuracy"), line("accuracy required", "accuracy", { borderDash: [5, 3] }),
        line("synapses left", "density", { stepped: "before" }),
      ] },
      options: {
        ...options,
        plugins: {
          legend: { position: "bottom", labels: { usePointStyle: true, pointStyle: "line", pointStyleWidth: 36 } },
          tooltip: { callbacks: { title: (items) => `iteration ${count(items[0].parsed.x)}`, label: ({ dataset, parsed }) => `${dataset.label}: ${percent(parsed.y)}` } },
        },
        interaction: { mode: "nearest", axis: "x", intersect: false },
        scales: {
          x: axis("iterations (mini-batch updates)", { type: "linear", min: 0 }),
          accuracy: axis("accuracy", { ticks: { callback: percent } }),
          density: axis("synapses left (log scale)", { type: "logarithmic", position: "right", max: 1, grid: { drawOnChartArea: false }, ticks: { callback: few(percent) } }),
        },
      },
      plugins: [band],
    });
    const show = () => {
      const { layers, delivered, rounds: all } = runs[select.value], [iteration, left, accuracy] = now();
      const total = left.reduce((sum, value) => sum + value), whole = layers.reduce((sum, [, value]) => sum + value, 0);
      const number = Number(slider.value);
      const name = number === 0 ? "Before pruning" : `Round ${number} of ${all.length - 1}, at iteration ${count(iteration)}`;
      const reached = accuracy === null ? "not evaluated before the next round" : `validation accuracy ${percent(accuracy)} before ${number === all.length - 1 ? "the end" : "the next round"}`;
      const text = `${name}: ${count(total)} of ${count(whole)} connections left (${percent(total / whole)}), ${reached}${number === delivered ? ". This network was delivered" : ""}.`;
      box.querySelector(".told").textContent = text;
      slider.setAttribute("aria-valuetext", text);
      box.querySelector("caption").textContent = name;
      box.querySelector("tbody").replaceChildren(...[...layers.map(([layer, of], at) => [layer, left[at], of]), ["all", total, whole]].map(([layer, rest, of]) => {
        const made = row([layer, percent(rest / of), count(rest), count(of)], "td");
        made.children[1].style.setProperty("--part", rest / of);
        made.children[1].className = "bar";
        return made;
      }));
      plot.update();
    };
    const choose = () => {
      const { title, requirement, trajectory: [at, accuracy, density], rounds: all } = runs[select.value];
      const sets = plot.data.datasets, pair = (values) => at.map((x, index) => ({ x, y: values[index] }));
      [sets[0].data, sets[2].data] = [pair(accuracy), pair(density)];
      sets[1].data = [{ x: 0, y: requirement }, { x: at.at(-1), y: requirement }];
      plot.options.scales.x.max = at.at(-1);
      plot.options.scales.accuracy.min = Math.max(0, requirement - 4 * (1 - requirement));
      plot.canvas.setAttribute("aria-label", `Validation accuracy and synapses left over the iterations: ${title}`);
      slider.max = all.length - 1;
      slider.value = 0;
      show();
    };
    drawn.push(() => {
      plot.data.datasets.forEach((set, at) => { set.borderColor = set.backgroundColor = [shade("#0072b2"), ink("soft"), shade("#d55e00")][at]; });
      plot.options.plugins.legend.labels.color = ink("ink");
      plot.update();
    });
    select.addEventListener("change", choose);
    slider.addEventListener("input", show);
    choose();
    drawn.at(-1)();
  };

  for (const [name, bring] of Object.entries({ front, rounds })) {
    const box = document.getElementById(name);
    box.classList.add("on"); // before it is drawn: what is hidden has no size
    bring(box, explored[name]);
  }
  dark.addEventListener("change", () => drawn.forEach((color) => color()));
})();
