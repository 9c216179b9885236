"use strict";
// Filters, sorting and details of a page that is complete without it. What a reader chose stands in the address, so that it outlives a reload.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  const state = new URLSearchParams(location.hash.slice(1));
  const remember = () => history.replaceState(null, "", "#" + state);
  const list = (key) => (state.get(key) || "").split(",").filter(Boolean);
  const form = one("filters");

  function filter() {
    const phase = form.elements.phase.value;
    const off = all("input[name=trust]:not(:checked)").map((box) => box.value);
    const hides = form.elements.hides.value;
    const quantum = form.elements.quantum.checked;
    let shown = 0;
    for (const section of all("section[data-phase]")) section.hidden = phase !== "both" && section.dataset.phase !== phase;
    for (const body of all("tbody[data-trust]")) {
      const claims = JSON.parse(body.dataset.claims);
      body.hidden = off.includes(body.dataset.trust) || (hides !== "" && !claims.includes(hides)) || (quantum && body.dataset.quantum !== "yes");
      if (!body.hidden && !body.closest("section").hidden) shown += 1;
    }
    for (const section of all("section[data-phase]")) {
      section.querySelector(".nothing").hidden = all("tbody:not([hidden])", section).length > 0;
    }
    one("count").textContent = shown + (shown === 1 ? " technique shown" : " techniques shown");
    state.set("phase", phase); state.set("off", off.join(",")); state.set("hides", hides); state.set("quantum", quantum ? "1" : "");
    remember();
  }

  function sort(table, place, way) {
    const value = (body) => body.rows[0].cells[place].dataset.value || "";
    const bodies = all("tbody", table);
    bodies.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what was not measured stands last, either way
      const [m, n] = [Number(x), Number(y)];
      return way * (Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n);
    });
    table.append(...bodies);
    all("thead th", table).forEach((head, at) => head.setAttribute("aria-sort", at !== place ? "none" : way > 0 ? "ascending" : "descending"));
    state.set("sort-" + table.id, place + "," + way);
    remember();
  }

  function open(button, yes) {
    button.setAttribute("aria-expanded", yes);
    one(button.getAttribute("aria-controls")).hidden = !yes;
  }

  for (const table of all("table.sortable")) {
    all("thead button", table).forEach((button, place) => button.addEventListener("click", () => {
      sort(table, place, button.parentElement.getAttribute("aria-sort") === "ascending" ? -1 : 1);
    }));
    const kept = list("sort-" + table.id).map(Number);
    if (kept.length === 2 && table.tHead.rows[0].cells[kept[0]] && Math.abs(kept[1]) === 1) sort(table, kept[0], kept[1]);
  }
  for (const button of all("button[aria-controls]")) {
    open(button, list("open").includes(button.id));
    button.addEventListener("click", () => {
      open(button, button.getAttribute("aria-expanded") !== "true");
      state.set("open", all("button[aria-controls][aria-expanded=true]").map((each) => each.id).join(","));
      remember();
    });
  }
  if (["both", "training", "inference"].includes(state.get("phase"))) form.elements.phase.value = state.get("phase");
  all("input[name=trust]").forEach((box) => { box.checked = !list("off").includes(box.value); });
  if (all("option", form.elements.hides).some((each) => each.value === state.get("hides"))) form.elements.hides.value = state.get("hides");
  form.elements.quantum.checked = state.get("quantum") === "1";
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();

  const follow = one("follow");
  if (follow) { // a run goes on: the file is written anew, and read anew while the box is ticked
    follow.checked = state.get("follow") !== "0";
    follow.addEventListener("input", () => { state.set("follow", follow.checked ? "1" : "0"); remember(); });
    if (state.get("focus") && one(state.get("focus"))) one(state.get("focus")).focus({ preventScroll: true });
    setInterval(() => {
      if (!follow.checked) return;
      state.set("focus", document.activeElement.id || ""); remember();
      location.reload();
    }, 3000);
  }
})();
