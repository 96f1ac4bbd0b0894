"use strict";
const table = document.getElementById("campaigns");
const heads = [...table.tHead.rows[0].cells];
const rows = [...table.tBodies[0].rows].map((row) => ({row, state: row.cells[0].textContent, text: ""}));
const form = document.forms[0];
const {search, state, sort: sorted, count} = form.elements;
const order = new Intl.Collator("en", {numeric: true}).compare;
const reloads = [...document.querySelectorAll(".note a")];

function sort(column, direction) {
  heads.forEach((head, place) => {
    if (place === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  });
  // Without the commas in numbers, which the collator would not read as one number.
  for (const each of rows) each.key = each.row.cells[column].textContent.replace(/(\d),(?=\d{3})/g, "$1");
  const sign = direction === "ascending" ? 1 : -1;
  rows.sort((one, other) => sign * order(one.key, other.key));
  table.tBodies[0].replaceChildren(...rows.map((each) => each.row));
}

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const each of rows) {
    each.text ||= each.row.textContent.toLowerCase();
    const fits = (!state.value || each.state === state.value) && words.every((word) => each.text.includes(word));
    each.row.hidden = !fits;
    shown += fits;
  }
  count.value = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
  save();
}

// The address keeps what is searched and sorted by, so that it survives a reload of the page.
function save() {
  const wanted = new URLSearchParams([...new FormData(form)].filter(([, value]) => value)).toString();
  history.replaceState(null, "", location.pathname + location.search + (wanted && `#${wanted}`));
  for (const link of reloads) link.hash = wanted;
}

heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => {
    const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    sort(column, direction);
    sorted.value = `${column} ${direction}`;
    save();
  });
  head.append(button);
});
heads[0].setAttribute("aria-sort", "ascending");
const wanted = new URLSearchParams(location.hash.slice(1));
search.value = wanted.get("search") ?? "";
state.value = wanted.get("state") ?? "";
sorted.value = wanted.get("sort") ?? "";
const [column, direction] = sorted.value.split(" ");
if (heads[column] && direction) sort(Number(column), direction);
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();

const loaded = Date.now();
const current = reloads.find((link) => link.search === location.search);
current?.setAttribute("aria-current", "true");
const every = Number(new URLSearchParams(current?.search).get("refresh"));
if (every) setTimeout(() => location.reload(), every * 1000);
setInterval(() => {
  const seconds = Math.round((Date.now() - loaded) / 1000);
  document.getElementById("age").textContent =
    `, ${seconds < 120 ? `${seconds}s` : `${Math.floor(seconds / 60).toLocaleString("en")}m`} ago`;
}, 1000);
