"use strict";
{
  const root = document.documentElement;
  const reading = document.getElementById("reading");
  root.classList.add("scripted");

  // The measure that colours, figures and tables show.
  for (const input of document.querySelectorAll("input[name=measure]")) {
    const apply = () => { if (input.checked) root.dataset.measure = input.value; };
    input.addEventListener("change", apply);
    apply();
  }

  // One passage at a time.
  const passages = [...document.querySelectorAll(".passage")];
  const choice = document.getElementById("choice");
  const show = (index) => {
    choice.selectedIndex = (index + passages.length) % passages.length;
    passages.forEach((p, i) => p.classList.toggle("away", i !== choice.selectedIndex));
    leave();
  };
  const turn = (id, step) => document.getElementById(id)
    .addEventListener("click", () => show(choice.selectedIndex + step));

  // The numbers of one token: under the pointer, or by the arrow keys in a passage.
  let current = null;
  function leave() {
    if (current) current.classList.remove("on");
    current = null;
    reading.hidden = true;
  }
  function read(token) {
    leave();
    current = token;
    token.classList.add("on");
    reading.querySelector("b").textContent = token.textContent.replace(/\n/g, "⏎");
    const values = reading.querySelectorAll("dd");
    token.dataset.n.split("|").forEach((text, i) => { values[i].textContent = text; });
    reading.hidden = false;
    const box = token.getClientRects()[0];
    const left = Math.min(box.left, root.clientWidth - reading.offsetWidth - 8);
    const below = box.bottom + 8;
    const fits = below + reading.offsetHeight < root.clientHeight;
    reading.style.left = `${Math.max(8, left) + window.scrollX}px`;
    reading.style.top = `${(fits ? below : box.top - reading.offsetHeight - 8) + window.scrollY}px`;
  }
  for (const text of document.querySelectorAll(".text")) {
    text.addEventListener("pointerover", (event) => {
      if (event.target.classList.contains("t")) read(event.target);
    });
    text.addEventListener("pointerleave", leave);
    text.addEventListener("blur", leave);
    text.addEventListener("keydown", (event) => {
      const tokens = [...text.querySelectorAll(".t")];
      const at = tokens.indexOf(current);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
      if (event.key === "Escape") leave();
      if (to === undefined || !tokens.length) return;
      event.preventDefault();
      const token = tokens[Math.min(Math.max(to, 0), tokens.length - 1)];
      token.scrollIntoView({ block: "nearest" });
      read(token);
    });
  }

  if (choice) {
    choice.addEventListener("change", () => show(choice.selectedIndex));
    turn("earlier", -1);
    turn("later", 1);
    show(0);
  }
}
