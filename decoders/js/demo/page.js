/** What both pages have in common. Text of a file is only ever set as text. */

export const byId = (id) => document.getElementById(id);

/** Whole numbers for people. */
export const count = new Intl.NumberFormat("en");

/** An element with text and attributes. */
export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Shows an error at its place on the page, or hides the place if it is null. */
export function showError(error, place = byId("error")) {
  place.textContent = error?.message ?? "";
  place.hidden = error === null;
}

/** Calls `take` with the files that are chosen in the form, or dropped anywhere on the page. */
export function acceptFiles(take) {
  byId("drop").addEventListener("submit", (event) => event.preventDefault());
  byId("file").addEventListener("change", ({ target }) => {
    take([...target.files]);
    target.value = ""; // the same files can be chosen again
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) byId("drop").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    take([...event.dataTransfer.files]);
  });
}
