"use strict";
const table = document.getElementById("campaigns");
const heads = [...table.tHead.rows[0].cells];
const rows = [...table.tBodies[0].rows].map((row) => ({row, state: row.cells[0].textContent, text: ""}));
const form = document.forms[0];
const {search, state, count} = form.elements;
const order = new Intl.Collator("en", {numeric: true}).compare;

function sort(column, direction) {
  heads.forEach((head, place) => {
    if (place === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  });
  for (const each of rows) each.key = each.row.cells[column].textContent;
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
  const wanted = new URLSearchParams(new FormData(form)).toString();
  history.replaceState(null, "", wanted === "search=&state=" ? location.pathname : `#${wanted}`);
}

heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => {
    sort(column, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
  });
  head.append(button);
});
heads[0].setAttribute("aria-sort", "ascending");
const wanted = new URLSearchParams(location.hash.slice(1));
search.value = wanted.get("search") ?? "";
state.value = wanted.get("state") ?? "";
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();
