"use strict";
{
  const root = document.documentElement;
  const reading = document.getElementById("reading");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const percent = (value) => `${Number((100 * value).toPrecision(2))}%`;
  root.classList.add("scripted");

  // Light or dark: follow the system until the button is pressed.
  const theme = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  prefersDark.addEventListener("change", showTheme);
  showTheme();

  // Show the numbers of one token: under the pointer, or chosen by the arrow keys in a passage.
  let current = null;
  function leave() {
    if (current) current.classList.remove("on");
    current = null;
    reading.hidden = true;
  }
  function read(token, extra) {
    leave();
    current = token;
    token.classList.add("on");
    reading.querySelector("b").textContent = token.textContent.replace(/\n/g, "⏎");
    const values = all("dd:not(.at)", reading);
    token.dataset.n.split("|").forEach((text, i) => { values[i].textContent = text; });
    all(".at", reading).forEach((element, i) => {
      element.textContent = extra[i] ?? "";
      element.hidden = !extra.length;
    });
    reading.hidden = false;
    const box = token.getClientRects()[0];
    const left = Math.min(box.left, root.clientWidth - reading.offsetWidth - 8);
    const below = box.bottom + 8;
    const fits = below + reading.offsetHeight < root.clientHeight;
    reading.style.left = `${Math.max(8, left) + window.scrollX}px`;
    reading.style.top = `${(fits ? below : box.top - reading.offsetHeight - 8) + window.scrollY}px`;
  }

  // Sizes and errors of a passage's cells by stratum, as passages.py packs them.
  const curves = new Map();
  function curvesOf(text) {
    if (!curves.has(text)) {
      const bytes = Uint8Array.from(atob(text.dataset.curves ?? ""), (c) => c.charCodeAt(0));
      curves.set(text, new DataView(bytes.buffer));
    }
    return curves.get(text);
  }
  function curveValue(text, cell, stratum, strata, what) {
    const code = curvesOf(text).getUint16(4 * (cell * strata + stratum) + (what === "tv" ? 2 : 0), true);
    return what === "tv" ? code / 65535 : 10 ** (-code / 8000);
  }

  for (const section of all(".passages")) {
    const passages = all(".passage", section);
    const find = (name) => section.querySelector(name);
    const [colour, stratum, choice, search] = [".colour", ".stratum", ".choice", ".search"].map(find);
    const legend = find(".at-stratum");
    const strata = Number(section.dataset.strata);

    // Colours.
    function paint() {
      const what = colour.value;
      const byStratum = what === "size" || what === "tv";
      section.dataset.colour = what;
      legend.hidden = !byStratum;
      if (!byStratum) return;
      const k = stratum.selectedIndex;
      const rows = passages.map((passage) => {
        const text = passage.querySelector(".text");
        const tokens = text.dataset.curves ? all(".t", text) : [];
        return tokens.map((token, cell) => [token, curveValue(text, cell, k, strata, what)]);
      }).flat();
      const place = what === "size" ? Math.log10 : (value) => value;
      const sorted = rows.map(([, value]) => place(value)).sort((a, b) => a - b);
      const at = (share) => sorted[Math.round(share * (sorted.length - 1))] ?? 0;
      const [low, high] = [at(0.02), at(0.98)];
      for (const [token, value] of rows) {
        const part = high > low ? (place(value) - low) / (high - low) : 0.5;
        token.style.setProperty("--s", Math.round(100 * Math.min(1, Math.max(0, part))));
      }
      const name = what === "size" ? percent : (value) => value.toFixed(2);
      const back = what === "size" ? (value) => 10 ** value : (value) => value;
      const ticks = [low, (low + high) / 2, high].map((value) => name(back(value)));
      const texts = [`≤ ${ticks[0]}`, ticks[1], `≥ ${ticks[2]}`];
      all("span > span", legend).forEach((tick, i) => { tick.textContent = texts[i]; });
      const title = `${what === "size" ? "size" : "error"} at stratum ${stratum.value}`;
      legend.setAttribute("aria-label", `Colour scale of the ${title}: ${texts.join(", ")}`);
    }
    function numbersAt(token) {
      const text = token.closest(".text");
      if (!stratum || !text.dataset.curves) return [];
      const cell = all(".t", text).indexOf(token);
      const value = (what) => curveValue(text, cell, stratum.selectedIndex, strata, what);
      const name = `at stratum ${stratum.value}`;
      return [`size ${name}`, percent(value("size")), `error ${name}`, value("tv").toFixed(3)];
    }
    const show = (token) => read(token, numbersAt(token));
    colour.addEventListener("change", paint);
    if (stratum) {
      stratum.addEventListener("change", () => {
        if (colour.value !== "size" && colour.value !== "tv") colour.value = "tv";
        paint();
      });
    }
    section.addEventListener("measure", (event) => {
      colour.value = event.detail;
      paint();
    });

    // One passage at a time.
    let matching = passages.map(() => true);
    function turnTo(index) {
      choice.selectedIndex = index;
      passages.forEach((passage, i) => passage.classList.toggle("away", i !== index));
      leave();
    }
    function turn(step) {
      const n = passages.length;
      for (let i = 1; i <= n; i++) {
        const index = (choice.selectedIndex + step * i + n * i) % n;
        if (matching[index]) return turnTo(index);
      }
      return undefined;
    }
    find(".earlier").addEventListener("click", () => turn(-1));
    find(".later").addEventListener("click", () => turn(1));
    choice.addEventListener("change", () => turnTo(choice.selectedIndex));

    // Search: find passages that contain the text, and mark the tokens that it overlaps.
    function look() {
      const wanted = search.value.toLowerCase();
      let places = 0;
      all(".t.hit", section).forEach((token) => token.classList.remove("hit"));
      matching = passages.map((passage) => {
        if (!wanted) return true;
        const text = passage.querySelector(".text");
        const pieces = [...text.childNodes].map((node) => node.textContent.toLowerCase());
        const whole = pieces.join("");
        const found = [];
        for (let at = whole.indexOf(wanted); at >= 0; at = whole.indexOf(wanted, at + 1)) found.push(at);
        places += found.length;
        let start = 0;
        pieces.forEach((piece, i) => {
          const end = start + piece.length;
          const node = text.childNodes[i];
          if (node.nodeType === 1 && found.some((at) => at < end && at + wanted.length > start)) {
            node.classList.add("hit");
          }
          start = end;
        });
        return found.length > 0;
      });
      [...choice.options].forEach((option, i) => { option.disabled = !matching[i]; });
      const n = matching.filter(Boolean).length;
      const plural = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
      find(".hits").textContent = !wanted ? ""
        : places ? `${plural(places, "place")} in ${plural(n, "passage")}` : "nowhere";
      if (n && !matching[choice.selectedIndex]) turnTo(matching.indexOf(true));
    }
    search.addEventListener("input", look);
    search.addEventListener("keydown", (event) => { if (event.key === "Enter") turn(1); });

    for (const text of all(".text", section)) {
      text.addEventListener("pointerover", (event) => {
        if (event.target.classList.contains("t")) show(event.target);
      });
      text.addEventListener("pointerleave", leave);
      text.addEventListener("blur", leave);
      text.addEventListener("keydown", (event) => {
        const tokens = all(".t", text);
        const at = tokens.indexOf(current);
        const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
        if (event.key === "Escape") leave();
        if (to === undefined || !tokens.length) return;
        event.preventDefault();
        const token = tokens[Math.min(Math.max(to, 0), tokens.length - 1)];
        token.scrollIntoView({ block: "nearest" });
        show(token);
      });
    }
    turnTo(0);
  }

  // Choose the measure of figures and tables, and of passages until they are coloured otherwise.
  for (const input of all("input[name=measure]")) {
    const apply = () => {
      if (!input.checked) return;
      root.dataset.measure = input.value;
      for (const section of all(".passages")) {
        section.dispatchEvent(new CustomEvent("measure", { detail: input.value }));
      }
    };
    input.addEventListener("change", apply);
    apply();
  }

  // One model at a time.
  const tabs = all("[role=tab]");
  function open(tab) {
    for (const other of tabs) {
      const key = other.getAttribute("aria-controls");
      other.setAttribute("aria-selected", String(other === tab));
      other.tabIndex = other === tab ? 0 : -1;
      document.getElementById(key).classList.toggle("away", other !== tab);
      all(`.legend[data-of="${key}"]`).forEach((legend) => legend.classList.toggle("away", other !== tab));
    }
    leave();
  }
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const n = tabs.length;
      const to = { ArrowRight: i + 1, ArrowLeft: i + n - 1, Home: 0, End: n - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      tabs[to % n].focus();
      open(tabs[to % n]);
    });
  });
  if (tabs.length) open(tabs[0]);

  // Save figures as files, with the page's present colours and fonts in place of its variables.
  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }
  function valueOf(variable) {
    const probe = document.createElement("span");
    probe.style[variable === "--sans" ? "fontFamily" : "color"] = `var(${variable})`;
    root.append(probe);
    const style = getComputedStyle(probe);
    const value = variable === "--sans" ? style.fontFamily : style.color;
    probe.remove();
    return value;
  }
  function standalone(svg) {
    const copy = svg.cloneNode(true);
    const known = {};
    for (const element of all("[style]", copy)) {
      const style = element.getAttribute("style");
      element.setAttribute("style", style.replace(/var\((--\w+)\)/g, (_, name) => (known[name] ??= valueOf(name))));
    }
    const { width, height } = svg.viewBox.baseVal;
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    const paper = document.createElementNS(svg.namespaceURI, "rect");
    for (const [name, value] of Object.entries({ width, height, fill: valueOf("--paper") })) {
      paper.setAttribute(name, value);
    }
    copy.prepend(paper);
    return { text: new XMLSerializer().serializeToString(copy), width, height };
  }
  async function saveFigure(kind, exhibit) {
    const name = `${exhibit.dataset.name}.${kind}`;
    if (kind === "csv") {
      const data = exhibit.querySelector("template").content.textContent;
      return save(new Blob([data], { type: "text/csv" }), name);
    }
    const figure = standalone(exhibit.querySelector("svg"));
    const drawing = new Blob([figure.text], { type: "image/svg+xml" });
    if (kind === "svg") return save(drawing, name);
    const image = new Image();
    image.src = URL.createObjectURL(drawing);
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = 3 * figure.width;
    canvas.height = 3 * figure.height;
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(image.src);
    return canvas.toBlob((blob) => save(blob, name), "image/png");
  }
  for (const button of all("[data-save]")) {
    button.addEventListener("click", () => saveFigure(button.dataset.save, button.closest(".exhibit")));
  }
}
